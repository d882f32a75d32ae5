"""How a host is doing: one reading of all that it tells of itself, as numbers that rules can judge.

Nothing here judges. Counters are given as they stand, since boot or whatever the kernel counts from: only their changes
while a run is under way say something about it.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scaletrain.hardware.cgroups import folders_with, own_groups
from scaletrain.hardware.host_clock import ClockReading, read_clock
from scaletrain.hardware.host_disks import (
    DiskReading,
    FolderReading,
    Folders,
    read_disks,
    read_file_system_errors,
)
from scaletrain.hardware.host_memory import (
    MEMORY_FILES,
    MemoryController,
    MemoryReading,
    Stalls,
    read_edac,
    read_memory,
    read_stalls,
)
from scaletrain.hardware.host_network import InterfaceReading, Network, PortReading
from scaletrain.hardware.host_processors import ProcessorReading, ThermalCounters, read_processors
from scaletrain.hardware.kernel_messages import KernelMessages, Kind

_GIB = 2**30
_FOLDERS_S = 0.5
"""Waiting for file systems; a server that is well answers within milliseconds."""


@dataclass(frozen=True)
class Roots:
    """Where the kernel tells of itself."""

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    cgroup: Path = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class HostReading:
    """What a host told at one moment.

    Attributes:
        memory: Free memory, waiting for it, kills.
        storage_stalls: Waiting for disks and file servers, on the whole machine.
        processors: What has held them back.
        folders: Those that a run needs.
        disks: Local disks.
        file_system_errors: Inconsistencies by device.
        interfaces: Network interfaces that had a link when the reader was made.
        ports: InfiniBand ports that were active when the reader was made.
        memory_controllers: Errors that check bits have found.
        clock: The host's clock.
        messages: Messages of the kernel's log since the reader was made, by kind; None where it may not be read.
    """

    memory: MemoryReading
    storage_stalls: Stalls
    processors: ProcessorReading
    folders: tuple[FolderReading, ...]
    disks: tuple[DiskReading, ...]
    file_system_errors: Mapping[str, int]
    interfaces: tuple[InterfaceReading, ...]
    ports: tuple[PortReading, ...]
    memory_controllers: tuple[MemoryController, ...]
    clock: ClockReading
    messages: Mapping[Kind, int] | None

    def signals(self) -> dict[str, float]:
        """The reading as flat numbers, such as ``host.oom_kills`` and ``host.nic.eth0.rx_errors``.

        All of them grow with what is wrong, but for those that tell what there is: ``free_gib``, ``free_inodes``,
        ``speed_mbit_per_s`` and ``rate_gbit_per_s``.

        Returns:
            Numbers by name; what is not told has none. What is or is not so is 1 or 0.
        """
        return {name: float(value) for name, value in self._all() if value is not None}

    def _all(self) -> Iterator[tuple[str, float | None]]:
        memory, processors, clock = self.memory, self.processors, self.clock
        yield "host.memory.free_gib", None if memory.free_bytes is None else memory.free_bytes / _GIB
        yield "host.memory.used_share", memory.used_share
        yield from _stalls("host.memory", memory.stalls)
        yield "host.oom_kills", memory.oom_kills
        yield "host.group_oom_kills", memory.group_oom_kills
        yield from _stalls("host.storage", self.storage_stalls)
        yield "host.cpu.throttled_s", processors.throttled_s
        yield "host.cpu.throttled_periods", processors.throttled_periods
        yield "host.cpu.core_throttles", processors.core_throttles
        yield "host.cpu.package_throttles", processors.package_throttles
        for folder in self.folders:
            yield from _folder(f"host.folder.{folder.name}", folder)
        for disk in self.disks:
            yield f"host.disk.{disk.name}.errors", disk.errors
            yield f"host.disk.{disk.name}.timeouts", disk.timeouts
            yield f"host.disk.{disk.name}.given_up", disk.is_given_up
        for name, count in self.file_system_errors.items():
            yield f"host.file_system.{name}.errors", count
        for interface in self.interfaces:
            yield f"host.nic.{interface.name}.carrier_lost", not interface.has_carrier
            yield f"host.nic.{interface.name}.carrier_changes", interface.carrier_changes
            yield f"host.nic.{interface.name}.speed_mbit_per_s", interface.speed_mbit_per_s
            yield f"host.nic.{interface.name}.slowed_share", interface.slowed_share
            yield from ((f"host.nic.{interface.name}.{name}", count) for name, count in interface.errors.items())
        for port in self.ports:
            yield f"host.ib.{port.name}.inactive", not port.is_active
            yield f"host.ib.{port.name}.rate_gbit_per_s", port.rate_gbit_per_s
            yield f"host.ib.{port.name}.slowed_share", port.slowed_share
            yield from ((f"host.ib.{port.name}.{name}", count) for name, count in port.errors.items())
        for controller in self.memory_controllers:
            yield f"host.edac.{controller.name}.corrected", controller.corrected
            yield f"host.edac.{controller.name}.uncorrected", controller.uncorrected
        yield "host.clock.unsynchronized", None if clock.is_synchronized is None else not clock.is_synchronized
        yield "host.clock.offset_s", clock.offset_s
        yield "host.clock.max_error_s", clock.max_error_s
        yield "host.clock.set_by_s", clock.set_by_s
        yield from ((f"host.kernel.{kind}", count) for kind, count in (self.messages or {}).items())


@dataclass
class HostReader:
    """Reads a host again and again, on one thread, in a few milliseconds and without ever waiting for long.

    Which control groups, network interfaces, ports and counters of heat there are is looked up once, when it is made.

    Attributes:
        folders: Folders to watch, by what they are for, such as "run_dir".
        interfaces: Network interfaces to watch; by default those that had a link and can matter, see ``Network``.
        kernel_log: Gives the lines that the kernel's log got since the call before; None where it may not be read.
        roots: Where the kernel tells of itself.
        ask: What asks a file system for its room.
        wait_s: How long to wait for file systems, in seconds, the first time that one does not answer.
    """

    folders: Mapping[str, Path] = field(default_factory=dict)
    interfaces: Sequence[str] | None = None
    kernel_log: Callable[[], Iterable[str]] | None = None
    roots: Roots = Roots()
    ask: Callable[[Path], os.statvfs_result] = os.statvfs
    wait_s: float = _FOLDERS_S

    def __post_init__(self) -> None:
        self._folders = Folders(self.folders, self.wait_s, self.ask)
        self._network = Network(self.roots.proc, self.roots.sys, self.interfaces)
        groups = own_groups(self.roots.proc / "self/cgroup", self.roots.cgroup)
        self._memory_groups = folders_with(groups, *MEMORY_FILES)
        self._cpu_groups = folders_with(groups, "cpu.stat")
        self._first_boot_s = read_clock().boot_s
        self._messages = KernelMessages()
        self._thermal = ThermalCounters.find(self.roots.sys)

    def read(self) -> HostReading:
        """Reads all that the host tells now.

        Returns:
            The reading; what the host does not tell is None in it.
        """
        proc, sys = self.roots.proc, self.roots.sys
        interfaces, ports = self._network.read()
        return HostReading(
            read_memory(proc, self._memory_groups),
            read_stalls(proc / "pressure" / "io"),
            read_processors(self._cpu_groups, self._thermal),
            self._folders.read(),
            read_disks(sys),
            read_file_system_errors(sys),
            interfaces,
            ports,
            read_edac(sys),
            read_clock(self._first_boot_s),
            None if self.kernel_log is None else self._messages.add(self.kernel_log()),
        )


def read_host(folders: Mapping[str, Path], roots: Roots = Roots()) -> HostReading:
    """Reads a host once.

    Args:
        folders: Folders to look at, by what they are for.
        roots: Where the kernel tells of itself.

    Returns:
        The reading.
    """
    return HostReader(folders, roots=roots).read()


def _stalls(prefix: str, stalls: Stalls) -> Iterator[tuple[str, float | None]]:
    yield f"{prefix}.stalled_some", stalls.some
    yield f"{prefix}.stalled_full", stalls.full
    yield f"{prefix}.stalled_full_s", stalls.full_s


def _folder(prefix: str, folder: FolderReading) -> Iterator[tuple[str, float | None]]:
    yield f"{prefix}.waited_s", folder.waited_s
    if folder.waited_s:
        return
    yield f"{prefix}.failed", bool(folder.error)
    yield f"{prefix}.free_gib", None if folder.free_bytes is None else folder.free_bytes / _GIB
    yield f"{prefix}.used_share", folder.used_share
    yield f"{prefix}.free_inodes", folder.free_inodes
    yield f"{prefix}.used_inodes_share", folder.used_inodes_share
    yield f"{prefix}.read_only", folder.is_read_only
