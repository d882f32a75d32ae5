"""A folder of files named by their content, bounded in bytes, that all processes of a machine share.

There is no state but the files. ``<checksum>.shard`` is whole: it was renamed to this name when its checksum was right.
``<checksum>.shard.part`` is on its way, and it is its own lock: whoever holds an flock on it fetches it, and the kernel
lets go when that process dies, however it dies. A part that nobody holds is garbage. It has its full size from the
moment that room was found for it, so that the sizes of the files are what is taken, at any moment, whoever looks.
"""

import contextlib
import errno
import fcntl
import io
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import xxhash

from scaletrain.errors import CacheError, DataError
from scaletrain.storage.failures import is_disk_full

_SUFFIX = ".shard"
_PART_SUFFIX = ".shard.part"
# Nothing else in the folder is counted or deleted: it may be one that the user keeps other things in.
_WHOLE_NAME = re.compile(r"[0-9a-f]{32}\.shard")
_PART_NAME = re.compile(r"[0-9a-f]{32}\.shard\.part")
_CHECKSUM = re.compile(r"[0-9a-f]{32}")
_LOOK_S = (0.005, 0.2)  # first and longest pause between two looks at what another process does


class CacheFolder:
    """The files, and the rules by which several processes use them at once."""

    def __init__(self, path: Path, capacity: int, patience_s: float) -> None:
        """Makes the folder where it is missing.

        Args:
            path: The folder.
            capacity: Bytes that whole files and those on their way may have together.
            patience_s: Longest wait for another process that makes no progress.

        Raises:
            CacheError: The folder cannot be made.
        """
        self.path = path
        self.capacity = capacity
        self._patience_s = patience_s
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise CacheError(
                f"the cache folder {path} cannot be made: {error.strerror}. Give another --data.cache_dir"
            ) from None

    def find(self, checksum: str, size: int) -> io.FileIO | None:
        """Opens a whole file, and marks it as used.

        Args:
            checksum: Of its content.
            size: Bytes that it has.

        Returns:
            The file; None where there is none of that size.
        """
        try:
            stream = io.FileIO(self._whole(checksum), opener=_open_no_link)
        except FileNotFoundError:
            return None
        found = os.fstat(stream.fileno())
        # No file is made durable, so a power cut may have left one with holes: once after each start of the machine its
        # content is looked at again. Marking it as used is what says that it was.
        if found.st_size != size or (found.st_ctime < _started_s() and _checksum_of(stream) != checksum):
            stream.close()
            return None
        os.utime(stream.fileno())
        return stream

    @contextmanager
    def claim(self, checksum: str) -> Iterator["Part | None"]:
        """Takes a file's part, so that nobody else fetches it; waits for whoever has it.

        Args:
            checksum: Of the file.

        Yields:
            The part, empty; None where another process had it, and has finished or given up: then look again.

        Raises:
            CacheError: The other process has made no progress for ``patience_s``.
        """
        path = self._part(checksum)
        descriptor = _open_no_link(path, os.O_RDWR | os.O_CREAT)
        part = Part(path, descriptor)
        try:
            waiting = _Patience(self._patience_s, f"for another process that fetches {path}")
            while not _try_lock(descriptor):
                waiting.look(os.fstat(descriptor).st_mtime_ns)
            if not _is_at(path, descriptor):
                yield None
                return
            # What a dead process had reserved counts no more, or two that wait for room could wait for each other.
            os.ftruncate(descriptor, 0)
            yield part
        finally:
            part.close()

    def reserve(self, part: "Part", size: int) -> None:
        """Gives a part its full size, and deletes for it what was used longest ago.

        Args:
            part: One that was claimed.
            size: Bytes that it will have.

        Raises:
            CacheError: It is larger than the whole cache, or files on their way leave no room and do not move on.
            OSError: The disk is full.
        """
        if size > self.capacity:
            raise CacheError(
                f"a file of {size} bytes ({size / 2**30:.3g} GiB) does not fit into the cache of {self.capacity} bytes "
                f"({self.capacity / 2**30:.3g} GiB) in {self.path}; give a larger --data.cache_gib"
            )
        waiting = _Patience(self._patience_s, f"for room in the cache {self.path}; give a larger --data.cache_gib")
        while True:
            with self._locked():
                whole, parts = self._look(part)
                room = self.capacity - size - sum(entry.size for entry in parts)
                if room >= 0:
                    self._allocate(part, size, self._evict(whole, room))
                    return
            waiting.look(sum(entry.mtime_ns for entry in parts))

    def has(self, checksum: str) -> bool:
        """Whether there is a whole file; one that is opened is looked at more closely."""
        return self._whole(checksum).exists()

    def is_coming(self, checksum: str) -> bool:
        """Whether some process fetches this file now."""
        try:
            return not _swept(str(self._part(checksum)))
        except FileNotFoundError:
            return False

    def keep(self, part: "Part", checksum: str) -> io.FileIO:
        """Gives a verified part its name, and opens it; whoever deletes it then, the open file stays."""
        stream = io.FileIO(part.path)
        # Not while somebody counts, who could miss it under both names.
        with self._locked():
            part.path.replace(self._whole(checksum))
        return stream

    def drop(self, checksum: str) -> None:
        """Deletes a whole file that is not what its name says."""
        self._whole(checksum).unlink(missing_ok=True)

    def _whole(self, checksum: str) -> Path:
        # It comes from a manifest, and a manifest may come from a stranger.
        if not _CHECKSUM.fullmatch(checksum):
            raise DataError(f"{checksum!r} is not an xxh3-128 in 32 hexadecimal digits. Index the corpus again.")
        return self.path / (checksum + _SUFFIX)

    def _part(self, checksum: str) -> Path:
        return self._whole(checksum).with_suffix(_PART_SUFFIX)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Held for moments only: one at a time counts, deletes and reserves."""
        descriptor = _open_no_link(self.path / ".lock", os.O_RDWR | os.O_CREAT)
        try:
            waiting = _Patience(self._patience_s, f"for the lock of the cache {self.path}")
            while not _try_lock(descriptor):
                waiting.look(0)
            yield
        finally:
            _unlock(descriptor)

    def _look(self, own: "Part") -> tuple[list["_Entry"], list["_Entry"]]:
        """Whole files and those on their way, but for the caller's; deletes parts that nobody fetches any more."""
        whole, parts = [], []
        with os.scandir(self.path) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    if _WHOLE_NAME.fullmatch(entry.name):
                        whole.append(_Entry.of(entry))
                    elif _PART_NAME.fullmatch(entry.name) and entry.name != own.path.name and not _swept(entry.path):
                        parts.append(_Entry.of(entry))
        return whole, parts

    def _evict(self, whole: list["_Entry"], room: int) -> list["_Entry"]:
        """Deletes what was used longest ago; returns what is left, in that order."""
        left = sorted(whole, key=lambda entry: entry.mtime_ns)
        taken = sum(entry.size for entry in left)
        while taken > room:
            taken -= left[0].size
            left.pop(0).delete()
        return left

    def _allocate(self, part: "Part", size: int, whole: list["_Entry"]) -> None:
        """Takes room on the disk, which others may have filled further than the cache may: then the cache shrinks."""
        while True:
            try:
                part.allocate(size)
                return
            except OSError as error:
                if not is_disk_full(error) or not whole:
                    raise
                whole.pop(0).delete()


class Part:
    """A file on its way: claimed by this descriptor."""

    def __init__(self, path: Path, descriptor: int) -> None:
        """Takes over an open descriptor."""
        self.path = path
        self.descriptor = descriptor

    def allocate(self, size: int) -> None:
        """Takes the room on the disk at once, where the file system can, so that a full one is met now."""
        os.ftruncate(self.descriptor, 0)
        try:
            os.posix_fallocate(self.descriptor, 0, max(size, 1))
        except OSError as error:
            if error.errno not in {errno.EINVAL, errno.EOPNOTSUPP}:
                raise
        os.ftruncate(self.descriptor, size)

    def close(self) -> None:
        """Lets go; what was not kept is deleted."""
        if _is_at(self.path, self.descriptor) and _try_lock(self.descriptor):
            self.path.unlink(missing_ok=True)
        _unlock(self.descriptor)


@dataclass(frozen=True)
class _Entry:
    path: str
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, entry: "os.DirEntry[str]") -> "_Entry":
        found = entry.stat(follow_symlinks=False)
        return cls(entry.path, found.st_size, found.st_mtime_ns)

    def delete(self) -> None:
        Path(self.path).unlink(missing_ok=True)


class _Patience:
    """Waits in growing pauses for something that others do, as long as they do it."""

    def __init__(self, patience_s: float, what: str) -> None:
        self._patience_s = patience_s
        self._what = what
        self._pause_s, self._longest_s = _LOOK_S
        self._progress = -1
        self._since_s = time.monotonic()

    def look(self, progress: int) -> None:
        """Waits a moment; raises CacheError when ``progress`` has been the same for too long."""
        if progress != self._progress:
            self._progress, self._since_s = progress, time.monotonic()
        if time.monotonic() - self._since_s > self._patience_s:
            raise CacheError(f"waited {self._patience_s:.0f} s {self._what}; nothing has moved in that time")
        time.sleep(self._pause_s)
        self._pause_s = min(self._pause_s * 1.5, self._longest_s)


def _open_no_link(path: str | Path, flags: int) -> int:
    """Opens a file of the cache; a link that somebody has put in its place leads nowhere."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unlock(descriptor: int) -> None:
    # Said, not only closed: a process that was forked meanwhile holds the same lock by its copy of the descriptor.
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether the open file is the one that bears this name now."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _swept(path: str) -> bool:
    """Deletes a part that nobody holds. Whoever has opened it meanwhile finds that it bears its name no more."""
    descriptor = _open_no_link(path, os.O_RDWR)
    try:
        if not _try_lock(descriptor):
            return False
        if _is_at(Path(path), descriptor):
            os.unlink(path)
        return True
    finally:
        _unlock(descriptor)


def _started_s() -> float:
    """When this machine was started, on the clock of the files."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def _checksum_of(stream: io.FileIO) -> str:
    content = xxhash.xxh3_128()
    position = 0
    while part := os.pread(stream.fileno(), 2**22, position):
        content.update(part)
        position += len(part)
    return content.hexdigest()
