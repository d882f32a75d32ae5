"""What this machine offers to this process: cores, memory, GPUs."""

import os
from dataclasses import dataclass
from pathlib import Path

import psutil
import pynvml

_GIB = 2**30
# Version 1 of control groups writes "no limit" as the largest multiple of the page size.
_NO_LIMIT_BYTES = 2**60


@dataclass(frozen=True)
class Gpu:
    """One GPU of this machine.

    Attributes:
        index: Number that the driver gives it.
        name: The vendor's name, such as "NVIDIA H100 80GB HBM3".
        memory_gib: Its own memory; None where it shares the host's.
    """

    index: int
    name: str
    memory_gib: float | None


@dataclass(frozen=True)
class HostInfo:
    """What this process may use.

    Attributes:
        cores: Logical cores, after CPU affinity and the control group's quota.
        memory_gib: Memory, after the control group's limit.
        gpus: All GPUs that the driver shows.
    """

    cores: int
    memory_gib: float
    gpus: tuple[Gpu, ...]


@dataclass(frozen=True)
class CgroupLimits:
    """Limits that the control groups of a process set; None where there is none.

    Attributes:
        cpus: Seconds of CPU time per second.
        memory_bytes: Memory in bytes.
    """

    cpus: float | None
    memory_bytes: int | None


def describe_host() -> HostInfo:
    """Describes the cores, the memory and the GPUs of this machine.

    Returns:
        What this process may use. A machine without a GPU or without NVIDIA's driver has no GPUs.
    """
    limits = cgroup_limits()
    cores = len(os.sched_getaffinity(0))
    if limits.cpus is not None:
        cores = max(1, min(cores, int(limits.cpus)))
    memory_bytes = psutil.virtual_memory().total
    if limits.memory_bytes is not None:
        memory_bytes = min(memory_bytes, limits.memory_bytes)
    return HostInfo(cores=cores, memory_gib=memory_bytes / _GIB, gpus=_list_gpus())


def cgroup_limits(membership: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")) -> CgroupLimits:
    """Reads the limits of the control groups that a process is in, versions 1 and 2.

    A limit may stand at any level of the tree, and the smallest counts.

    Args:
        membership: The kernel's list of the process's groups.
        mount: Where the tree of groups is mounted.

    Returns:
        The limits; without control groups there are none.
    """
    cpus: list[float] = []
    memory_bytes: list[int] = []
    for controllers, path in _memberships(membership):
        for folder in _levels(mount, controllers, path):
            cpus += _cpu_quota(folder)
            memory_bytes += _memory_limit(folder)
    return CgroupLimits(min(cpus, default=None), min(memory_bytes, default=None))


def free_memory(membership: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")) -> int:
    """Memory that this process could still take, in bytes.

    Args:
        membership: The kernel's list of the process's groups.
        mount: Where the tree of groups is mounted.

    Returns:
        What the machine has left, or what is left below the tightest limit of the control groups.
    """
    free = [int(psutil.virtual_memory().available)]
    for controllers, path in _memberships(membership):
        for folder in _levels(mount, controllers, path):
            free += [limit - _memory_in_use(folder) for limit in _memory_limit(folder)]
    return max(0, min(free))


def _memory_in_use(folder: Path) -> int:
    """What a group has in use, without the pages of files that the kernel would drop."""
    used = (_words(folder / "memory.current") or _words(folder / "memory.usage_in_bytes") or ["0"])[0]
    words = _words(folder / "memory.stat")
    stat = dict(zip(words[::2], words[1::2], strict=False))
    return int(used) - int(stat.get("total_inactive_file", stat.get("inactive_file", "0")))


def _memberships(membership: Path) -> list[tuple[str, str]]:
    """Lines such as "0::/a/b" (version 2) or "4:cpu,cpuacct:/a/b" (version 1), as (controllers, path)."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    fields = [line.split(":", 2) for line in lines]
    return [(entry[1], entry[2]) for entry in fields if len(entry) == 3]


def _levels(mount: Path, controllers: str, path: str) -> list[Path]:
    """The folder of a group and those above it, up to the mount; in a container the path may not exist below it."""
    roots = [mount] if not controllers else [mount / controllers, *(mount / name for name in controllers.split(","))]
    parts = Path(path.lstrip("/")).parts
    return [root.joinpath(*parts[:depth]) for root in roots for depth in range(len(parts) + 1)]


def _cpu_quota(folder: Path) -> list[float]:
    quota, period = (_words(folder / "cpu.max") + [""] * 2)[:2]
    if not quota:
        quota, period = (" ".join(_words(folder / name)) for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
    if quota.isdigit() and period.isdigit() and int(period) > 0:
        return [int(quota) / int(period)]
    return []


def _memory_limit(folder: Path) -> list[int]:
    for name in ("memory.max", "memory.limit_in_bytes"):
        words = _words(folder / name)
        if words and words[0].isdigit() and int(words[0]) < _NO_LIMIT_BYTES:
            return [int(words[0])]
    return []


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _list_gpus() -> tuple[Gpu, ...]:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        return tuple(_describe_gpu(index) for index in range(pynvml.nvmlDeviceGetCount()))
    except pynvml.NVMLError:
        # A GPU that fell off the bus answers nothing; finding that out is the node check's job, not this one's.
        return ()
    finally:
        pynvml.nvmlShutdown()


def _describe_gpu(index: int) -> Gpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    name = pynvml.nvmlDeviceGetName(handle)
    try:
        memory_gib = pynvml.nvmlDeviceGetMemoryInfo(handle).total / _GIB
    except pynvml.NVMLError_NotSupported:
        memory_gib = None
    return Gpu(index, name if isinstance(name, str) else name.decode(), memory_gib)
