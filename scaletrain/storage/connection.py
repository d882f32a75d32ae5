"""A filesystem of fsspec on a thread of its own, so that one that hangs can be left behind.

fsspec runs all asynchronous filesystems of a process on one loop: a call that blocks there (a lookup of credentials,
of a name) holds up every other transfer, and a fork while that loop is being made leaves its lock taken for ever in the
child. So each connection has its own loop, made where it is used. Its filesystem lives in the frame of its thread only:
a child of a fork does not run that thread, so it never finalizes what the parent still uses, which would take the
parent's sockets out of the poll that both share.
"""

import asyncio
import contextlib
import inspect
import queue
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any

import aiohttp
import fsspec
from fsspec.asyn import AsyncFileSystem

from scaletrain.storage.failures import StalledError

_IDLE_S = 20.0  # an unused connection ends itself
_FRESH_S = 5.0  # well before that it is no longer taken up again
_OPENING_S = 60.0  # for loading a library and finding its credentials, before the first call
_CONNECT_S = 30.0
# These are told the longest time without a byte, so that a slow answer is no stall; the rest is given an answer's time.
_WITH_LIMITS = {"http", "https", "s3", "s3a"}
_LONGEST_ANSWER = 10  # times that, for what comes byte by byte and would never end
_CLOSE_S = 2.0


class Connection:
    """One filesystem object, used by one caller at a time, in the process that made it."""

    def __init__(self, scheme: str, stall_s: float) -> None:
        """Starts the thread, which makes the filesystem.

        Args:
            scheme: Of the URLs that will be asked for.
            stall_s: Longest time without a byte of an answer; without the whole answer, where the library that gives it
                has no such limit.
        """
        self._opening_s = max(_OPENING_S, stall_s)
        self._answer_s = stall_s * _LONGEST_ANSWER if scheme in _WITH_LIMITS else stall_s
        self._used_s = time.monotonic()
        self._is_busy = True
        self._opened: Future[None] = Future()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._loop = asyncio.new_event_loop()
        threading.Thread(
            target=_serve,
            args=(scheme, stall_s, self._opened, self._jobs, self._loop),
            name=f"fetch {scheme}",
            daemon=True,
        ).start()

    @property
    def is_fresh(self) -> bool:
        """Whether it was used so recently that its server has not closed it, nor it itself."""
        is_open = self._opened.done() and self._opened.exception() is None
        return is_open and time.monotonic() - self._used_s < _FRESH_S

    def call(self, method: str, url: str, **arguments: Any) -> Any:
        """Calls a method of the filesystem.

        Args:
            method: Its name in the synchronous interface, such as ``cat_file``.
            url: Its first argument.
            **arguments: The others.

        Returns:
            What it returns.

        Raises:
            StalledError: No answer came in time; the connection must be abandoned.
            Exception: What the filesystem raised.
        """
        _wait_for(self._opened, self._opening_s)
        job = _Job(method, url, arguments)
        self._is_busy = True
        self._jobs.put(job)
        answer = _wait_for(job.answer, self._answer_s)
        self._used_s = time.monotonic()
        self._is_busy = False
        return answer

    def abandon(self) -> None:
        """Ends it without waiting: what hangs is cancelled, and if that does not help, left behind."""
        self._jobs.put(None)
        if self._is_busy:
            with contextlib.suppress(RuntimeError):  # the loop is closed: it has ended just now
                self._loop.call_soon_threadsafe(_cancel_all, self._loop)


class _Job:
    def __init__(self, method: str, url: str, arguments: dict[str, Any]) -> None:
        self.method = method
        self.url = url
        self.arguments = arguments
        self.answer: Future[Any] = Future()


def _serve(
    scheme: str,
    stall_s: float,
    opened: "Future[None]",
    jobs: "queue.SimpleQueue[_Job | None]",
    loop: asyncio.AbstractEventLoop,
) -> None:
    loop.set_exception_handler(lambda *_: None)  # says nothing that the caller was not told
    filesystem: Any = None
    try:
        try:
            filesystem = _open(scheme, stall_s, loop)
            opened.set_result(None)
        except BaseException as error:
            opened.set_exception(error)
            return
        while job := _next(jobs):
            try:
                job.answer.set_result(_call(filesystem, job, loop))
            except BaseException as error:
                job.answer.set_exception(error)
    finally:
        # What was cancelled has ended by now; a session that is not closed tells the log of it.
        with contextlib.suppress(Exception, asyncio.CancelledError):
            loop.run_until_complete(asyncio.sleep(0))  # takes the cancellation that may still be on its way
        with contextlib.suppress(Exception, asyncio.CancelledError):
            loop.run_until_complete(asyncio.wait_for(_close(filesystem), _CLOSE_S))
        loop.close()


def _wait_for(answer: "Future[Any]", limit_s: float) -> Any:
    try:
        return answer.result(timeout=limit_s)
    except TimeoutError:
        if answer.done():
            raise  # the library's own time limit
        raise StalledError("no byte in time") from None


def _next(jobs: "queue.SimpleQueue[_Job | None]") -> _Job | None:
    try:
        return jobs.get(timeout=_IDLE_S)
    except queue.Empty:
        return None


def _open(scheme: str, stall_s: float, loop: asyncio.AbstractEventLoop) -> Any:
    kind = fsspec.get_filesystem_class(scheme)
    options = _options(scheme, stall_s)
    if issubclass(kind, AsyncFileSystem):
        options["asynchronous"] = True
    filesystem = kind(skip_instance_cache=True, **options)
    if hasattr(filesystem, "retries"):
        filesystem.retries = 1  # s3fs tries five times by itself, and no one would hear of it
    if hasattr(filesystem, "set_session"):
        loop.run_until_complete(filesystem.set_session())
    return filesystem


def _options(scheme: str, stall_s: float) -> dict[str, Any]:
    """Settings without hidden retries, and with time limits below the caller's; what the user configured stays."""
    configured = fsspec.config.conf.get(scheme, {})
    connect_s = min(_CONNECT_S, stall_s)
    if scheme in {"http", "https"}:
        ours = {
            "timeout": aiohttp.ClientTimeout(total=None, sock_connect=connect_s, sock_read=stall_s),
            # Bytes are counted and hashed as they lie there, not as a server may pack them for the way.
            "headers": {"Accept-Encoding": "identity"},
            "auto_decompress": False,
            "trust_env": True,  # proxies, and credentials from .netrc
        }
        return {"client_kwargs": {**ours, **configured.get("client_kwargs", {})}}
    if scheme in {"s3", "s3a"}:
        limits = {
            "connect_timeout": connect_s,
            "read_timeout": stall_s,
            "retries": {"total_max_attempts": 1, "mode": "standard"},
        }
        return {"config_kwargs": {**configured.get("config_kwargs", {}), **limits}}
    return {}


def _call(filesystem: Any, job: _Job, loop: asyncio.AbstractEventLoop) -> Any:
    path = filesystem._strip_protocol(job.url)
    if not isinstance(filesystem, AsyncFileSystem):
        return getattr(filesystem, job.method)(path, **job.arguments)

    async def answer() -> Any:
        return await getattr(filesystem, f"_{job.method}")(path, **job.arguments)

    coroutine: Coroutine[Any, Any, Any] = answer()
    return loop.run_until_complete(coroutine)


async def _close(filesystem: Any) -> None:
    # fsspec closes what it made for synchronous use only; these are the names of its sessions.
    for name in ("_session", "_s3"):
        session = getattr(filesystem, name, None)
        if session is not None:
            closing = session.close()
            if inspect.isawaitable(closing):
                await closing


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    for task in asyncio.all_tasks(loop):
        task.cancel()
