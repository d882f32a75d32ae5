"""The shards of a corpus on this machine: fetched once for all ranks and workers, within a number of bytes."""

import io
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from scaletrain.errors import CacheError, DataError
from scaletrain.storage.cache_folder import CacheFolder, Part
from scaletrain.storage.failures import is_disk_full
from scaletrain.storage.fetch import Fetcher, FetchPolicy, Report
from scaletrain.storage.urls import printable

_PREFETCH_THREADS = 4
_FetchAhead = Callable[[str, int, str], bool]


class ShardCache:
    """Opens shards from anywhere.

    All processes that give the same folder share it, through the file system alone. An object may be pickled and used
    on both sides of a fork: threads, connections and locks belong to the process that made them, and are made anew.
    """

    def __init__(self, folder: Path, capacity: int, policy: FetchPolicy, report: Report, sharers: int = 1) -> None:
        """Makes the folder; fetches nothing yet.

        Args:
            folder: On a disk of this machine. Files there that are not the cache's own are left alone.
            capacity: Bytes that the files of the cache may have together, with those on their way.
            policy: How hard to try.
            report: Called with ``fetch_retry`` (see ``Fetcher``) and ``prefetch_failed`` (url, reason), also from the
                threads that prefetch.
            sharers: Processes of this machine that fetch ahead, each other files.

        Raises:
            CacheError: The folder cannot be made.
        """
        self.folder = folder
        self.capacity = capacity
        self._sharers = sharers
        self._files = CacheFolder(folder, capacity, policy.patience_s)
        self._fetcher = Fetcher(policy, report)
        self._report = report
        self._ahead = _Prefetching()

    def open(self, url: str, size: int, checksum: str) -> io.FileIO:
        """Opens a shard, fetched first where it is not here yet.

        Args:
            url: Its URL.
            size: Bytes that it has.
            checksum: Its xxh3-128, in hexadecimal. Equal content is stored once, whatever its URLs.

        Returns:
            The whole file, verified, open for reading at its begin. It stays readable when the cache deletes it; its
            bytes on the disk are free when it is closed.

        Raises:
            DataError: It cannot be had; see ``Fetcher.fetch``.
            CacheError: It is larger than the cache, the disk is full, or another process that fetches it hangs.
        """
        try:
            while True:
                stream = self._files.find(checksum, size) or self._bring(url, size, checksum)
                if stream is not None:
                    return stream
        except OSError as error:
            if is_disk_full(error):
                raise CacheError(
                    f"the disk of the cache {self.folder} is full: no room for the {size} bytes of {printable(url)}. "
                    f"Free some, give a smaller --data.cache_gib (now {self.capacity / 2**30:.3g}), or another "
                    "--data.cache_dir"
                ) from None
            raise CacheError(
                f"the cache {self.folder} cannot be used: {error.strerror}. Mend the disk, or give another "
                "--data.cache_dir"
            ) from None

    def prefetch(self, wanted: Sequence[tuple[str, int, str]]) -> None:
        """Starts to fetch what will be opened soon, in the background.

        What an earlier call asked for, and has not begun, is forgotten. Each sharer asks for no more than its part of
        the cache holds, so that what is needed last does not drive out what is needed first.

        Args:
            wanted: URL, size and checksum of each file, in the order of need: what is in use, here already or not, and
                behind it what will be.
        """
        room = self.capacity // self._sharers
        chosen = []
        for url, size, checksum in wanted:
            room -= size
            if room < 0:
                break
            if not self._files.has(checksum):
                chosen.append((url, size, checksum))
        self._ahead.here().start(chosen, self._fetch_ahead)

    def _bring(self, url: str, size: int, checksum: str) -> io.FileIO | None:
        """Fetches a file, or waits for whoever does; None when it is to be looked for again."""
        with self._files.claim(checksum) as part:
            if part is None:
                return None
            found = self._files.find(checksum, size)
            if found is not None:
                return found
            self._files.drop(checksum)
            self._files.reserve(part, size)
            self._fill(part, url, size, checksum)
            return self._files.keep(part, checksum)

    def _fill(self, part: Part, url: str, size: int, checksum: str) -> None:
        with io.FileIO(part.descriptor, "rb+", closefd=False) as stream:
            self._fetcher.fetch(url, stream, size, checksum)

    def _fetch_ahead(self, url: str, size: int, checksum: str) -> bool:
        try:
            # One that somebody fetches already needs nobody to wait for it.
            if not self._files.is_coming(checksum):
                self.open(url, size, checksum).close()
            return True
        except Exception as error:
            # Whoever needs the file meets the error himself, and may be more lucky.
            reason = str(error) if isinstance(error, DataError) else type(error).__name__
            self._report("prefetch_failed", url=printable(url), reason=reason)
            return False


class _Prefetching:
    """Threads that work off a list, and end with it."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._waiting: deque[tuple[str, int, str]] = deque()
        self._running: set[str] = set()
        self._failed: set[str] = set()  # they are not tried again with each step that has them ahead
        self._threads = 0
        self._successor: _Prefetching | None = None

    def __reduce__(self) -> tuple[type["_Prefetching"], tuple[()]]:
        return _Prefetching, ()  # whoever unpickles it has no thread yet

    def here(self) -> "_Prefetching":
        """That of this process: in the child of a fork another one, as locks and threads are the parent's."""
        if self._pid == os.getpid():
            return self
        if self._successor is None:
            self._successor = _Prefetching()
        return self._successor.here()

    def start(self, wanted: Sequence[tuple[str, int, str]], fetch: _FetchAhead) -> None:
        """Replaces the list, and starts the threads that it needs."""
        with self._lock:
            self._waiting = deque(entry for entry in wanted if entry[2] not in self._running | self._failed)
            missing = min(len(self._waiting), _PREFETCH_THREADS) - self._threads
            self._threads += max(missing, 0)
        for _ in range(missing):
            threading.Thread(target=self._work, args=(fetch,), name="prefetch", daemon=True).start()

    def _work(self, fetch: _FetchAhead) -> None:
        while (entry := self._next()) is not None:
            done = fetch(*entry)
            with self._lock:
                self._running.discard(entry[2])
                if not done:
                    self._failed.add(entry[2])

    def _next(self) -> tuple[str, int, str] | None:
        with self._lock:
            if not self._waiting:
                self._threads -= 1
                return None
            entry = self._waiting.popleft()
            self._running.add(entry[2])
            return entry
