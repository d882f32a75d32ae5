"""The control groups that a process is in, versions 1 and 2."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scaletrain.hardware.kernel_files import read_number, read_table, read_words

MEMBERSHIP = Path("/proc/self/cgroup")
MOUNT = Path("/sys/fs/cgroup")

# Version 1 of control groups writes "no limit" as the largest multiple of the page size.
_NO_LIMIT_BYTES = 2**60


@dataclass(frozen=True)
class CgroupLimits:
    """Limits that the control groups of a process set; None where there is none.

    Attributes:
        cpus: Seconds of CPU time per second.
        memory_bytes: Memory in bytes.
    """

    cpus: float | None
    memory_bytes: int | None


def own_groups(membership: Path = MEMBERSHIP, mount: Path = MOUNT) -> list[list[Path]]:
    """The folders of a process's groups.

    Args:
        membership: The kernel's list of the process's groups.
        mount: Where the tree of groups is mounted.

    Returns:
        For each hierarchy that there is, the folders from its root down to the process's group. In a container the
        lower ones may be missing: its root is its group.
    """
    hierarchies = []
    for controllers, path in _memberships(membership):
        for root in _roots(mount, controllers):
            if root.is_dir():
                parts = Path(path.lstrip("/")).parts
                levels = [root.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)]
                hierarchies.append([folder for folder in levels if folder.is_dir()])
    return hierarchies


def folders_with(groups: Sequence[Sequence[Path]], *names: str) -> list[list[Path]]:
    """The folders that have one of some files.

    Args:
        groups: Folders of each hierarchy, from ``own_groups``.
        names: Of the files.

    Returns:
        The same without other folders, and without hierarchies that have none.
    """
    found = [[folder for folder in levels if any((folder / name).exists() for name in names)] for levels in groups]
    return [levels for levels in found if levels]


def cgroup_limits(membership: Path = MEMBERSHIP, mount: Path = MOUNT) -> CgroupLimits:
    """Reads the limits of the control groups that a process is in, versions 1 and 2.

    A limit may stand at any level of the tree, and the smallest counts.

    Args:
        membership: The kernel's list of the process's groups.
        mount: Where the tree of groups is mounted.

    Returns:
        The limits; without control groups there are none.
    """
    folders = [folder for levels in own_groups(membership, mount) for folder in levels]
    cpus = [quota for folder in folders if (quota := _cpu_quota(folder)) is not None]
    memory_bytes = [limit for folder in folders if (limit := memory_limit(folder)) is not None]
    return CgroupLimits(min(cpus, default=None), min(memory_bytes, default=None))


def memory_limit(folder: Path) -> int | None:
    """The limit of one group itself, in bytes; None where it sets none."""
    for name in ("memory.max", "memory.limit_in_bytes"):
        limit = read_number(folder / name)
        if limit is not None and limit < _NO_LIMIT_BYTES:
            return limit
    return None


def memory_room(groups: Sequence[Sequence[Path]]) -> list[tuple[int, int]]:
    """What is left below the memory limits of control groups.

    Args:
        groups: Folders of the groups, from ``own_groups``.

    Returns:
        For each limit, what is left in bytes, negative above it, and the limit.
    """
    room = []
    for levels in groups:
        for folder in levels:
            if (limit := memory_limit(folder)) is not None:
                room.append((limit - _memory_in_use(folder), limit))
    return room


def _memory_in_use(folder: Path) -> int:
    """What a group has in use, without the pages of files that the kernel would drop."""
    used = read_number(folder / "memory.current")
    if used is None:
        used = read_number(folder / "memory.usage_in_bytes") or 0
    stat = read_table(folder / "memory.stat")
    return used - stat.get("total_inactive_file", stat.get("inactive_file", 0))


def _memberships(membership: Path) -> list[tuple[str, str]]:
    """Lines such as "0::/a/b" (version 2) or "4:cpu,cpuacct:/a/b" (version 1), as (controllers, path)."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    fields = [line.split(":", 2) for line in lines]
    return [(entry[1], entry[2]) for entry in fields if len(entry) == 3]


def _roots(mount: Path, controllers: str) -> list[Path]:
    """Where a hierarchy may be mounted; version 2 beside version 1 stands in a folder of its own (systemd's hybrid)."""
    if not controllers:
        return [mount / "unified"] if (mount / "unified").is_dir() else [mount]
    return [mount / name for name in dict.fromkeys((controllers, *controllers.split(",")))]


def _cpu_quota(folder: Path) -> float | None:
    quota, period = (read_words(folder / "cpu.max") + [""] * 2)[:2]
    if not quota:
        quota, period = (" ".join(read_words(folder / name)) for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
    if quota.isdigit() and period.isdigit() and int(period) > 0:
        return int(quota) / int(period)
    return None
