"""Local files as they are, and everything else through the network: what readers of a corpus ask for bytes."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scaletrain.errors import DataError
from scaletrain.storage.cache import ShardCache
from scaletrain.storage.fetch import Fetcher, FetchPolicy, Report
from scaletrain.storage.urls import PIPE, is_remote, printable, scheme_of


def _say_nothing(kind: str, **fields: Any) -> None:
    """Without a run there is no diary to write into."""


class Storage:
    """Opens what a manifest names. It may be used on both sides of a fork."""

    def __init__(
        self,
        policy: FetchPolicy | None = None,
        cache_dir: Path | None = None,
        cache_bytes: int = 0,
        report: Report | None = None,
        sharers: int = 1,
    ) -> None:
        """Opens nothing yet.

        Args:
            policy: How hard to try, and whether commands may be run.
            cache_dir: Folder of this node for remote shards; without one only small files are read remotely.
            cache_bytes: Largest size of that folder.
            report: Called with a kind and fields for each retry and the like, in whatever process meets it.
            sharers: Ranks of this machine that fetch ahead, each other shards.
        """
        self._policy = policy or FetchPolicy()
        self._report = report or _say_nothing
        self._fetcher = Fetcher(self._policy, self._report)
        self._cache_dir = cache_dir
        self._cache_bytes = cache_bytes
        self._sharers = sharers
        self._cache: ShardCache | None = None

    def read(self, location: str, largest: int, what: str) -> bytes:
        """Reads a small file whole.

        Args:
            location: A path or a URL.
            largest: Bytes that it may have.
            what: What it is, for the message.

        Returns:
            Its content.

        Raises:
            DataError: It cannot be read, or is larger.
        """
        if is_remote(location):
            return self._fetcher.read(location, largest)
        try:
            with open(location, "rb") as stream:
                content = stream.read(largest + 1)
        except OSError as error:
            raise DataError(f"{what} {printable(location)} cannot be read: {error.strerror}.") from None
        if len(content) > largest:
            raise DataError(f"{what} {location} has more than {largest} bytes, which is too much for one.")
        return content

    def open(self, location: str, size: int, checksum: str) -> io.FileIO:
        """Opens a shard or an index for positioned reads.

        Args:
            location: A path or a URL.
            size: In bytes.
            checksum: xxh3-128 of the content; checked when the file arrives from elsewhere.

        Returns:
            The open file. That of a remote shard stays readable when the cache drops it.

        Raises:
            DataError: It cannot be had.
        """
        if not is_remote(location):
            try:
                return io.FileIO(location)
            except OSError as error:
                raise DataError(f"{location} cannot be opened: {error.strerror}.") from None
        return self._remote(location).open(location, size, checksum)

    def is_readable(self, location: str) -> bool:
        """Whether a file is there and gives its first byte; of a ``pipe:`` command it is taken for granted."""
        if scheme_of(location) == PIPE:
            return True
        try:
            if is_remote(location):
                self._fetcher.touch(location)
            else:
                with open(location, "rb") as stream:
                    stream.read(1)
            return True
        except (DataError, OSError):
            return False

    def prefetch(self, wanted: Sequence[tuple[str, int, str]]) -> None:
        """Starts to fetch what will be opened soon, in the background; what is local needs none.

        Args:
            wanted: Location, size and checksum of each file, in the order of need; what an earlier call asked for and
                has not begun is forgotten.
        """
        remote = [entry for entry in wanted if is_remote(entry[0])]
        if remote:
            self._remote(remote[0][0]).prefetch(remote)

    def _remote(self, location: str) -> ShardCache:
        """The cache; its folder is made when the first remote shard is opened."""
        if self._cache is None:
            if self._cache_dir is None:
                raise DataError(f"{printable(location)} is remote, and there is no cache to fetch it to.")
            self._cache = ShardCache(self._cache_dir, self._cache_bytes, self._policy, self._report, self._sharers)
        return self._cache
