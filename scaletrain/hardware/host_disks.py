"""Storage of a host: room in the folders that a run needs, and errors that disks and file systems have counted."""

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from scaletrain.hardware.kernel_files import list_names, read_number, read_text


@dataclass(frozen=True)
class FolderReading:
    """The file system below a watched folder; None where it is not told.

    Attributes:
        name: What the folder is for, such as "run_dir".
        free_bytes: Room for users. A user's or a project's quota may leave less.
        used_share: How full it is for users, 0 to 1.
        free_inodes: New files that fit; None where the file system has no such limit.
        used_inodes_share: How full it is of files, 0 to 1.
        is_read_only: Whether it is mounted so, or the kernel has made it so after an error.
        error: What the file system said instead; empty where it answered.
        waited_s: For how long it has not answered, in seconds; 0 where it did.
    """

    name: str
    free_bytes: int | None = None
    used_share: float | None = None
    free_inodes: int | None = None
    used_inodes_share: float | None = None
    is_read_only: bool | None = None
    error: str = ""
    waited_s: float = 0.0


@dataclass(frozen=True)
class DiskReading:
    """A block device; None where its driver does not tell.

    Attributes:
        name: Such as "sda".
        errors: Commands that ended with an error, since boot. Some of them are harmless questions that a disk does not
            know.
        timeouts: Commands that did not end in time, since boot.
        is_given_up: Whether the kernel works with it no more.
    """

    name: str
    errors: int | None
    timeouts: int | None
    is_given_up: bool | None


class FolderWatch:
    """Asks for the room in one folder, and is not kept waiting by a file server that is gone.

    The call may never return. So it is made by a thread, and while that has not returned no other one is made: a dead
    server costs one thread, however often it is asked for.

    Args:
        name: What the folder is for.
        path: The folder.
        ask: What asks the file system.
    """

    def __init__(self, name: str, path: Path, ask: Callable[[Path], os.statvfs_result] = os.statvfs) -> None:
        self._name = name
        self._path = path
        self._ask = ask
        self._asking: threading.Thread | None = None
        self._since_s = 0.0
        self._answer = FolderReading(name)

    def begin(self) -> bool:
        """Asks, unless the question before is not answered yet; returns whether it did."""
        if self._asking is not None and self._asking.is_alive():
            return False
        self._since_s = time.monotonic()
        self._asking = threading.Thread(target=self._run, name=f"asks for {self._path}", daemon=True)
        self._asking.start()
        return True

    def finish(self, wait_s: float) -> FolderReading:
        """Gives the answer.

        Args:
            wait_s: How long to wait for it at most, in seconds.

        Returns:
            The answer, or for how long there has been none.
        """
        assert self._asking is not None  # begin was called
        self._asking.join(max(0.0, wait_s))
        if self._asking.is_alive():
            return FolderReading(self._name, waited_s=time.monotonic() - self._since_s)
        return self._answer

    def _run(self) -> None:
        try:
            found = self._ask(self._path)
        except OSError as error:
            self._answer = FolderReading(self._name, error=error.strerror or str(error))
            return
        self._answer = FolderReading(
            self._name,
            found.f_bavail * found.f_frsize,
            _used_share(found.f_blocks, found.f_bfree, found.f_bavail),
            found.f_favail if found.f_files else None,
            _used_share(found.f_files, found.f_ffree, found.f_favail),
            bool(found.f_flag & os.ST_RDONLY),
        )


def _used_share(total: int, free: int, available: int) -> float | None:
    """As df counts: what is set aside for root is neither used nor free."""
    used = total - free
    return used / (used + available) if used + available > 0 else None


class Folders:
    """The folders that a run needs.

    Args:
        folders: They, by what they are for.
        wait_s: How long to wait for all of them, in seconds.
        ask: What asks a file system.
    """

    def __init__(
        self, folders: Mapping[str, Path], wait_s: float, ask: Callable[[Path], os.statvfs_result] = os.statvfs
    ) -> None:
        self._watches = [FolderWatch(name, path, ask) for name, path in folders.items()]
        self._wait_s = wait_s

    def read(self) -> tuple[FolderReading, ...]:
        """Asks for all of them at once; one that did not answer last time either is not waited for again."""
        asked = [watch.begin() for watch in self._watches]
        until_s = time.monotonic() + self._wait_s
        return tuple(
            watch.finish(until_s - time.monotonic() if is_new else 0.0)
            for watch, is_new in zip(self._watches, asked, strict=True)
        )


def read_disks(sys: Path) -> tuple[DiskReading, ...]:
    """Reads what the drivers of disks have counted: those of SCSI, SATA and NVMe.

    Args:
        sys: Where sysfs is mounted.

    Returns:
        The disks whose driver tells something.
    """
    disks = []
    for name in list_names(sys / "block"):
        device = sys / "block" / name / "device"
        state = read_text(device / "state") or None
        errors, timeouts = (read_number(device / file, 0) for file in ("ioerr_cnt", "iotmo_cnt"))
        if (state, errors, timeouts) != (None, None, None):
            # "resetting" and "connecting" of NVMe pass, or end in "dead".
            is_given_up = None if state is None else state in ("offline", "transport-offline", "dead", "deleting")
            disks.append(DiskReading(name, errors, timeouts, is_given_up))
    return tuple(disks)


def read_file_system_errors(sys: Path) -> dict[str, int]:
    """Reads how many inconsistencies ext4 has met.

    Args:
        sys: Where sysfs is mounted.

    Returns:
        Counts by device, since the file system was checked last. Other file systems count none.
    """
    counts = {name: read_number(sys / "fs/ext4" / name / "errors_count") for name in list_names(sys / "fs/ext4")}
    return {name: count for name, count in counts.items() if count is not None}
