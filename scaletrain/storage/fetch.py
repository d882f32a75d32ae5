"""Brings files here from anywhere, whole and verified, or says why not.

A file comes in ranges, each tried again by itself when it is cut, refused or stalls; the whole file again when its
checksum is wrong. Nothing waits for ever: what makes no progress within ``stall_s`` is left behind with its connection.
"""

import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import xxhash

from scaletrain.errors import DataError, UnreachableError
from scaletrain.storage.command import output_of
from scaletrain.storage.connection import Connection
from scaletrain.storage.failures import (
    NOT_SATISFIABLE,
    StalledError,
    TransferError,
    is_lasting,
    is_stall,
    reason_of,
    remedy_of,
    status_of,
)
from scaletrain.storage.urls import PIPE, check_url, local_path, printable, scheme_of

_CHUNK = 8 * 2**20
_SMALLEST_CHUNK = 2**18  # after a stall smaller chunks are asked for: a slow line is not a dead one
_MAX_IDLE = 4  # connections of a scheme that are kept for the next file

# Called with the kind of an event and its fields, from whatever thread meets it.
Report = Callable[..., None]


@dataclass(frozen=True)
class FetchPolicy:
    """How hard to try.

    Attributes:
        attempts: Tries of a chunk, and of a whole file with a wrong checksum, before giving up.
        stall_s: Longest time without progress: a chunk that is not here by then is asked for anew.
        first_backoff_s: Upper bound of the wait after the first failure; it doubles with each further one.
        longest_backoff_s: Where that doubling ends.
        allow_pipe: Whether ``pipe:COMMAND`` may run its command.
    """

    attempts: int = 8
    stall_s: float = 60.0
    first_backoff_s: float = 0.5
    longest_backoff_s: float = 30.0
    allow_pipe: bool = False

    def backoff_s(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row: exponential with full jitter.

        Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
        """
        bound_s = min(self.longest_backoff_s, self.first_backoff_s * 2.0 ** (failures - 1))
        # Not the process's generator: ranks seed it alike, and would all come back at the same moment.
        return random.SystemRandom().uniform(0, bound_s)

    @property
    def patience_s(self) -> float:
        """Time after which a transfer that somebody else makes, and that has not moved, must have ended."""
        return self.attempts * (self.stall_s + self.longest_backoff_s)


class Fetcher:
    """Fetches files, and keeps a few connections for the next ones. May be used from threads and after a fork."""

    def __init__(self, policy: FetchPolicy, report: Report) -> None:
        """Connects to nothing yet.

        Args:
            policy: How hard to try.
            report: Called as ``report("fetch_retry", url=, attempt=, reason=, wait_s=)`` before each further try.
        """
        self.policy = policy
        self._report = report
        self._pool = _Pool()

    def read(self, url: str, largest: int) -> bytes:
        """Reads a small file whole, whose size is not known.

        Args:
            url: A URL or a path.
            largest: Bytes that it may have.

        Returns:
            Its content.

        Raises:
            DataError: It may not be opened, cannot be read, or is larger.
        """
        check_url(url, self.policy.allow_pipe)
        tries = Tries(self.policy, self._report, url)
        while True:
            try:
                content = self._read_once(url, largest)
            except Exception as error:
                tries.failed(error)
                continue
            if len(content) > largest:
                raise DataError(f"{printable(url)} has more than {largest} bytes, which is too much for such a file.")
            return content

    def touch(self, url: str) -> None:
        """Reads the first byte of a file.

        Args:
            url: A URL that is no command.

        Raises:
            DataError: It may not be opened or cannot be read.
        """
        check_url(url, self.policy.allow_pipe)
        self._ask_patiently("cat_file", url, start=0, end=1)

    def fetch(self, url: str, stream: BinaryIO, size: int, checksum: str) -> None:
        """Brings a file here.

        Args:
            url: A URL or a path.
            stream: Open for binary writing; the file is written from its position 0 on.
            size: Bytes that the file has.
            checksum: xxh3-128 of the file, in hexadecimal.

        Raises:
            DataError: It may not be opened, is missing or forbidden, has another size, or could not be had within the
                policy's attempts.
            OSError: The stream cannot be written.
        """
        check_url(url, self.policy.allow_pipe)
        tries = Tries(self.policy, self._report, url)
        transfer = self._transfer_command if scheme_of(url) == PIPE else self._transfer
        before = None
        while (found := transfer(url, stream, size)) != checksum:
            if found == before:
                raise DataError(
                    f"{printable(url)} is not the file that the manifest was made for: its xxh3-128 is {found} in two "
                    f"transfers, the manifest says {checksum}. Restore the file, or index the corpus again with "
                    "tools/make_shards.py."
                )
            before = found
            tries.failed(TransferError(f"its checksum is {found}, the manifest says {checksum}"))
        stream.flush()

    def _read_once(self, url: str, largest: int) -> bytes:
        if scheme_of(url) == PIPE:
            content = bytearray()
            for part in output_of(url.removeprefix(f"{PIPE}:"), self.policy.stall_s):
                content += part
                if len(content) > largest:
                    break
            return bytes(content)
        try:
            return bytes(self._ask("cat_file", url, start=0, end=largest + 1))
        except Exception as error:
            if status_of(error) == NOT_SATISFIABLE:  # an empty file has no first byte
                return b""
            raise

    def _transfer_command(self, url: str, stream: BinaryIO, size: int) -> str:
        tries = Tries(self.policy, self._report, url)
        while True:
            content, position = xxhash.xxh3_128(), 0
            stream.seek(0)
            parts = output_of(url.removeprefix(f"{PIPE}:"), self.policy.stall_s)
            try:
                for part in parts:
                    position += len(part)
                    if position > size:
                        raise _wrong_size(url, f"more than {size}", size)
                    content.update(part)
                    _write_all(stream, part)
                if position < size:
                    raise TransferError(f"the command wrote {position} of {size} bytes")
                return content.hexdigest()
            except TransferError as error:
                tries.failed(error)
            finally:
                parts.close()

    def _transfer(self, url: str, stream: BinaryIO, size: int) -> str:
        """Writes the file and returns its checksum."""
        content, position, chunk = xxhash.xxh3_128(), 0, _CHUNK
        stream.seek(0)
        while position < size:
            tries = Tries(self.policy, self._report, url)
            while True:
                end = min(position + chunk, size)
                try:
                    data = self._chunk(url, position, end, size)
                    break
                except Exception as error:
                    tries.failed(error)
                    if is_stall(error):
                        chunk = max(chunk // 2, _SMALLEST_CHUNK)
            content.update(data)
            _write_all(stream, data)
            position += len(data)
        return content.hexdigest()

    def _chunk(self, url: str, start: int, end: int, size: int) -> memoryview:
        """The bytes from ``start`` to ``end``; to the file's end, where a server answers with the whole file."""
        # One byte more than there should be is asked for at the end, so that a longer file gives itself away.
        beyond = 1 if end == size else 0
        try:
            data = memoryview(self._ask("cat_file", url, start=start, end=end + beyond))
        except Exception as error:
            if status_of(error) == NOT_SATISFIABLE:
                self._check_size(url, size)
            raise
        wanted = end - start
        if len(data) == wanted:
            return data
        if len(data) == size:
            return data[start:]
        if wanted < len(data) <= wanted + beyond or len(data) > size:
            raise _wrong_size(url, f"more than {size}", size)
        self._check_size(url, size)
        raise TransferError(f"truncated: {len(data)} of {wanted} bytes came of those from {start} to {end}")

    def _check_size(self, url: str, size: int) -> None:
        """Looks why an answer was too short. A store that does not tell sizes leaves it open."""
        try:
            found = self._ask("info", url).get("size")
        except Exception:
            return
        if isinstance(found, int) and found != size:
            raise _wrong_size(url, str(found), size)

    def _ask_patiently(self, method: str, url: str, **arguments: Any) -> Any:
        tries = Tries(self.policy, self._report, url)
        while True:
            try:
                return self._ask(method, url, **arguments)
            except Exception as error:
                tries.failed(error)

    def _ask(self, method: str, url: str, **arguments: Any) -> Any:
        scheme = scheme_of(url) or "file"
        pool = self._pool.here()
        connection = pool.take(scheme) or Connection(scheme, self.policy.stall_s)
        has_answered = False
        try:
            answer = connection.call(method, local_path(url), **arguments)
            has_answered = True
            return answer
        except StalledError:
            raise
        except Exception:
            has_answered = True
            raise
        finally:
            # One that hangs is in no known state: the next try begins with a new filesystem object.
            if has_answered:
                pool.give_back(scheme, connection)
            else:
                connection.abandon()


class Tries:
    """Counts the failures of one thing, and waits between them."""

    def __init__(self, policy: FetchPolicy, report: Report, url: str) -> None:
        self._policy = policy
        self._report = report
        self._url = url
        self._failures = 0

    def failed(self, error: Exception) -> None:
        """Waits before the next try; raises DataError where there is none."""
        if isinstance(error, DataError):
            raise error
        shown, reason = printable(self._url), reason_of(error, self._url)
        if is_lasting(error):
            # The library's error holds the URL as it is, so it is not chained.
            raise DataError(f"{shown} cannot be read: {reason}. {remedy_of(error)}") from None
        self._failures += 1
        if self._failures >= self._policy.attempts:
            raise UnreachableError(
                f"{shown} cannot be read, {self._failures} times in a row, at last: {reason}. Check the network and "
                "the server; the same command goes on where this one stopped."
            ) from None
        wait_s = self._policy.backoff_s(self._failures)
        self._report("fetch_retry", url=shown, attempt=self._failures, reason=reason, wait_s=round(wait_s, 3))
        time.sleep(wait_s)


class _Pool:
    """Connections that are not in use. Those of another process are left alone."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._idle: dict[str, list[Connection]] = {}
        self._successor: _Pool | None = None

    def __reduce__(self) -> tuple[type["_Pool"], tuple[()]]:
        return _Pool, ()  # whoever unpickles it has no connection yet

    def here(self) -> "_Pool":
        """The pool of this process: in the child of a fork another one, as locks and threads are the parent's."""
        if self._pid == os.getpid():
            return self
        if self._successor is None:
            self._successor = _Pool()
        return self._successor.here()

    def take(self, scheme: str) -> Connection | None:
        """A connection that was used just now; None where there is none."""
        with self._lock:
            idle = self._idle.get(scheme, [])
            while idle:
                connection = idle.pop()
                if connection.is_fresh:
                    return connection
                connection.abandon()
        return None

    def give_back(self, scheme: str, connection: Connection) -> None:
        """Keeps a connection for whoever asks next."""
        with self._lock:
            idle = self._idle.setdefault(scheme, [])
            idle.append(connection)
            surplus = idle.pop(0) if len(idle) > _MAX_IDLE else None
        if surplus is not None:
            surplus.abandon()


def _write_all(stream: BinaryIO, data: bytes | memoryview) -> None:
    rest = memoryview(data)
    while rest:  # an unbuffered file may take a part only
        rest = rest[stream.write(rest) :]


def _wrong_size(url: str, found: str, size: int) -> DataError:
    return DataError(
        f"{printable(url)} has {found} bytes, the manifest says {size}. Restore the file, or index the corpus again "
        "with tools/make_shards.py."
    )
