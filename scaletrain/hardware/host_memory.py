"""Memory of a host: what is left, how much work waits for it, and who was killed for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scaletrain.hardware.cgroups import memory_limit, memory_room
from scaletrain.hardware.kernel_files import largest, read_number, read_table, read_text, total

MEMORY_FILES = ("memory.max", "memory.limit_in_bytes", "memory.events", "memory.oom_control", "memory.pressure")
"""Files of a control group that tell of memory, versions 2 and 1."""


@dataclass(frozen=True)
class Stalls:
    """How much work waited for a resource: the kernel's pressure stall information.

    Source: Documentation/accounting/psi.rst of the Linux kernel.

    Attributes:
        some: Share of the last 60 s in which at least one task waited, 0 to 1.
        full: Share of the last 60 s in which all tasks that were not idle waited, 0 to 1.
        full_s: Seconds since boot in which all waited.
    """

    some: float | None = None
    full: float | None = None
    full_s: float | None = None


@dataclass(frozen=True)
class MemoryReading:
    """Memory at one moment; None where it is not told.

    Attributes:
        free_bytes: What a process here could still take: left on the machine, and below the control groups' limits.
        used_share: How much is taken, 0 to 1: of the machine's memory, or of the tightest limit.
        stalls: Waiting for memory: the worse of the machine and of the own control groups, whose limit may be tighter.
        oom_kills: Processes that the kernel has killed since boot because memory had run out, in any control group.
        group_oom_kills: Those of them in the own control group: the one nearest above with a limit, or the own one
            where there is no limit.
    """

    free_bytes: int | None
    used_share: float | None
    stalls: Stalls
    oom_kills: int | None
    group_oom_kills: int | None


def read_memory(proc: Path, groups: Sequence[Sequence[Path]]) -> MemoryReading:
    """Reads what is told of memory.

    Args:
        proc: Where procfs is mounted.
        groups: Folders of the own control groups, from ``own_groups``.

    Returns:
        The reading.
    """
    machine = read_stalls(proc / "pressure" / "memory")
    own = [read_stalls(folder / "memory.pressure") for levels in groups for folder in levels]
    stalls = Stalls(
        largest([machine.some, *(one.some for one in own)]),
        largest([machine.full, *(one.full for one in own)]),
        largest([machine.full_s, *(one.full_s for one in own)]),
    )
    return MemoryReading(
        *_room(proc, groups),
        stalls,
        read_table(proc / "vmstat").get("oom_kill"),
        total(_oom_kills(levels) for levels in groups),
    )


def read_stalls(path: Path) -> Stalls:
    """Reads a file of pressure stall information.

    Args:
        path: Such as /proc/pressure/memory, or memory.pressure of a control group.

    Returns:
        What it tells; None for each where the kernel was built or started without it.
    """
    told: dict[str, dict[str, float]] = {}
    for line in (read_text(path) or "").splitlines():
        kind, *fields = line.split()
        told[kind] = {name: float(value) for name, _, value in (field.partition("=") for field in fields) if value}
    some, full = told.get("some", {}), told.get("full", {})
    return Stalls(_scaled(some.get("avg60"), 100), _scaled(full.get("avg60"), 100), _scaled(full.get("total"), 1e6))


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit


def _room(proc: Path, groups: Sequence[Sequence[Path]]) -> tuple[int | None, float | None]:
    """Free bytes and used share, of the machine or the control group that has least."""
    meminfo = {line.partition(":")[0]: line.split() for line in (read_text(proc / "meminfo") or "").splitlines()}
    room = memory_room(groups)
    if "MemAvailable" in meminfo and "MemTotal" in meminfo:
        available, size = (int(meminfo[name][1]) * 1024 for name in ("MemAvailable", "MemTotal"))
        room.append((available, size))
    free = max(0, min(left for left, _ in room)) if room else None
    return free, largest(1 - left / size for left, size in room if size > 0)


def _oom_kills(levels: Sequence[Path]) -> int | None:
    """Kills in one hierarchy, from the own group up to the nearest one with a limit.

    Version 2 counts a kill in the group of the killed process and in all above it, version 1 in its own group only.
    The groups above the limited one are others' business: on a shared node, other jobs are in them.
    """
    own = []
    for folder in reversed(levels):
        own.append(folder)
        if memory_limit(folder) is not None:
            break
    else:
        own = own[:1]
    version_1 = total(read_table(folder / "memory.oom_control").get("oom_kill") for folder in own)
    version_2 = read_table(own[-1] / "memory.events").get("oom_kill") if own else None
    return total([version_1, version_2])


def read_edac(sys: Path) -> tuple["MemoryController", ...]:
    """Reads how many errors the memory's own check bits have found.

    Args:
        sys: Where sysfs is mounted.

    Returns:
        Each memory controller that has a driver; none on most virtual machines.
    """
    return tuple(
        MemoryController(folder.name, read_number(folder / "ce_count"), read_number(folder / "ue_count"))
        for folder in sorted((sys / "devices/system/edac/mc").glob("mc[0-9]*"))
    )


@dataclass(frozen=True)
class MemoryController:
    """Errors that one memory controller has seen since its driver was loaded.

    Source: Documentation/admin-guide/RAS of the Linux kernel.

    Attributes:
        name: Such as "mc0".
        corrected: Errors of one bit, which were corrected.
        uncorrected: Errors that could not be corrected.
    """

    name: str
    corrected: int | None
    uncorrected: int | None
