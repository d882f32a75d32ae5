"""What this machine offers to this process: cores, memory, GPUs."""

import os
from dataclasses import dataclass
from pathlib import Path

import psutil
import pynvml

from scaletrain.hardware.cgroups import MEMBERSHIP, MOUNT, cgroup_limits, memory_room, own_groups

_GIB = 2**30


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


def free_memory(membership: Path = MEMBERSHIP, mount: Path = MOUNT) -> int:
    """Memory that this process could still take, in bytes.

    Args:
        membership: The kernel's list of the process's groups.
        mount: Where the tree of groups is mounted.

    Returns:
        What the machine has left, or what is left below the tightest limit of the control groups.
    """
    free = int(psutil.virtual_memory().available)
    return max(0, min([free, *(left for left, _ in memory_room(own_groups(membership, mount)))]))


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
