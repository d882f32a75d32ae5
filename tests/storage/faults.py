"""A proxy for HTTP that breaks what goes through it, as networks and servers do.

It runs on a thread of the test's process, between a client and a real server: it passes requests on as they are, counts
them, and spoils the answers that it was told to.
"""

import asyncio
import random
import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

Kind = Literal["reset", "unavailable", "truncate", "shorten", "flip", "stall", "slow", "whole"]
"""``reset``: half of the body, then the connection is reset. ``unavailable``: status 503 instead of the answer.
``truncate``: half of the body, then the connection is closed. ``shorten``: half of the body, which the header calls all
of it. ``flip``: one bit of the body is another. ``stall``: half of the body, then nothing more, until the client goes.
``slow``: the body in five parts with pauses of 0.2 s. ``whole``: the request's range is ignored, as some servers do."""


@dataclass
class Fault:
    """What to do to answers.

    Attributes:
        kind: What happens.
        times: How many answers it happens to.
        path: A regular expression that the request's path has to hold.
        method: Requests of this method only.
        every: It happens to each n-th of the answers that it could happen to.
    """

    kind: Kind
    times: int = 1
    path: str = ""
    method: str = "GET"
    every: int = 1
    _seen: int = field(default=0, init=False)

    def strikes(self, request: "Request") -> bool:
        """Whether it happens to the answer of this request; counts it."""
        if self.times <= 0 or request.method != self.method or not re.search(self.path, request.path):
            return False
        self._seen += 1
        if self._seen % self.every:
            return False
        self.times -= 1
        return True


@dataclass(frozen=True)
class Request:
    """A request that came through.

    Attributes:
        method: ``GET``, ``HEAD`` ...
        path: Path and query.
        range: Value of its ``Range`` header; empty without one.
    """

    method: str
    path: str
    range: str


class FaultProxy:
    """The proxy.

    Attributes:
        url: Where it listens.
        requests: All that came through, in order.
        connections: How many were made to it.
    """

    def __init__(self, upstream: str, delay_s: float = 0.0) -> None:
        """Starts nothing yet: see ``fault_proxy``.

        Args:
            upstream: URL of the server.
            delay_s: Time that each answer takes at least.
        """
        self.upstream = upstream
        self.delay_s = delay_s
        self.url = ""
        self.requests: list[Request] = []
        self.connections = 0
        self._faults: list[Fault] = []
        self._random = random.Random(0)

    def inject(self, kind: Kind, times: int = 1, path: str = "", method: str = "GET", every: int = 1) -> None:
        """Breaks answers to come; see ``Fault``. Of several faults that fit the one given first strikes."""
        self._faults.append(Fault(kind, times, path, method, every))

    def count(self, path: str = "", method: str = "GET") -> int:
        """How many requests of this method, with a path that the regular expression is found in, came through."""
        return sum(request.method == method and bool(re.search(path, request.path)) for request in self.requests)

    def clear(self) -> None:
        """Forgets requests and faults."""
        self.requests.clear()
        self.connections = 0
        self._faults.clear()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers the requests of one connection."""
        self.connections += 1
        try:
            while head := await _head(reader):
                body = await reader.readexactly(int(_header(head, b"content-length") or 0))
                method, path, _ = head.split(b"\r\n", 1)[0].decode().split(" ", 2)
                request = Request(method, path, (_header(head, b"range") or b"").decode())
                self.requests.append(request)
                fault = next((fault.kind for fault in self._faults if fault.strikes(request)), None)
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                if fault == "whole":
                    head = _without(head, b"range")
                answer_head, answer = await self._ask(head, body, method)
                if not await self._answer(reader, writer, answer_head, answer, fault):
                    return
        except (OSError, asyncio.IncompleteReadError):
            return  # the client or the server has gone
        finally:
            writer.close()

    async def _ask(self, head: bytes, body: bytes, method: str) -> tuple[bytes, bytes]:
        place = urlsplit(self.upstream)
        reader, writer = await asyncio.open_connection(place.hostname, place.port)
        try:
            writer.write(_without(head, b"connection")[:-2] + b"Connection: close\r\n\r\n" + body)
            answer_head = await _head(reader)
            length = _header(answer_head, b"content-length")
            if method == "HEAD":
                return answer_head, b""
            return answer_head, await (reader.read() if length is None else reader.readexactly(int(length)))
        finally:
            writer.close()

    async def _answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes, body: bytes, fault: Kind | None
    ) -> bool:
        """Sends an answer; returns whether the connection can be used for another."""
        half = len(body) // 2
        head = _without(_without(head, b"connection"), b"transfer-encoding")
        if fault == "unavailable":
            writer.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy")
        elif fault == "shorten":
            length = b"Content-Length: %d\r\n\r\n" % half
            writer.write(_without(head, b"content-length")[:-2] + length + body[:half])
        elif fault == "flip":
            spoilt, place = bytearray(body), self._random.randrange(len(body))
            spoilt[place] ^= 1
            writer.write(head + spoilt)
        elif fault in {"reset", "truncate", "stall"}:
            writer.write(head + body[:half])
        elif fault == "slow":
            writer.write(head)
            part = len(body) // 5 + 1
            for start in range(0, len(body), part):
                await asyncio.sleep(0.2)
                writer.write(body[start : start + part])
        else:
            writer.write(head + body)
        await writer.drain()
        if fault == "stall":
            await reader.read()  # returns when the client has given up
        if fault == "reset":
            _reset(writer)
        return fault not in {"reset", "truncate", "stall"}


@contextmanager
def fault_proxy(upstream: str, delay_s: float = 0.0) -> Iterator[FaultProxy]:
    """Runs a proxy before a server.

    Args:
        upstream: URL of the server.
        delay_s: Time that each answer takes at least.

    Yields:
        The proxy; its ``url`` takes the server's place.
    """
    proxy = FaultProxy(upstream, delay_s)
    loop = asyncio.new_event_loop()
    # A client that was killed or forked may leave its connection broken in any way; that is no news.
    loop.set_exception_handler(lambda *_: None)
    server = loop.run_until_complete(asyncio.start_server(proxy.serve, "127.0.0.1", 0))
    proxy.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    thread = threading.Thread(target=loop.run_forever, name="fault proxy", daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        asyncio.run_coroutine_threadsafe(_end(server), loop).result(timeout=10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=10)
        loop.close()


async def _end(server: asyncio.Server) -> None:
    server.close()
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _head(reader: asyncio.StreamReader) -> bytes:
    """Start line and headers; empty where the other side has closed."""
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""


def _header(head: bytes, name: bytes) -> bytes | None:
    for line in head.split(b"\r\n")[1:]:
        found, _, value = line.partition(b":")
        if found.strip().lower() == name:
            return value.strip()
    return None


def _without(head: bytes, name: bytes) -> bytes:
    lines = head.split(b"\r\n")
    return b"\r\n".join(line for line in lines if line.partition(b":")[0].strip().lower() != name)


def _reset(writer: asyncio.StreamWriter) -> None:
    # Closing with no time to linger sends RST instead of FIN.
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
