"""Processors of a host that are slower than they could be: held back by a quota, or by heat."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scaletrain.hardware.kernel_files import largest, read_number, read_table, read_text, total


@dataclass(frozen=True)
class ProcessorReading:
    """What has held the processors back; None where it is not told.

    Attributes:
        throttled_s: Time for which threads of the own control groups, or of those above, had to wait because their
            CPU quota was used up, in seconds over all threads.
        throttled_periods: Periods of the quota in which that happened.
        core_throttles: How often a core was too hot, since boot, over all cores.
        package_throttles: How often a whole processor was too hot, since boot; that of the one with most.
    """

    throttled_s: float | None
    throttled_periods: int | None
    core_throttles: int | None
    package_throttles: int | None


@dataclass(frozen=True)
class ThermalCounters:
    """Files with the counters of Intel's thermal interrupt; none on processors of others and on virtual machines."""

    cores: tuple[Path, ...]
    packages: tuple[Path, ...]

    @classmethod
    def find(cls, sys: Path) -> "ThermalCounters":
        """Looks for them once: a large node has hundreds, which do not move.

        The threads of a core have one counter, and so have the cores of a package: one of each is enough.

        Args:
            sys: Where sysfs is mounted.
        """
        cores: dict[str, Path] = {}
        packages: dict[str, Path] = {}
        for folder in sorted((sys / "devices/system/cpu").glob("cpu[0-9]*/thermal_throttle")):
            topology = folder.parent / "topology"
            siblings = read_text(topology / "thread_siblings_list") or folder.parent.name
            package = read_text(topology / "physical_package_id") or folder.parent.name
            cores.setdefault(siblings, folder / "core_throttle_count")
            packages.setdefault(package, folder / "package_throttle_count")
        return cls(tuple(cores.values()), tuple(packages.values()))


def read_processors(groups: Sequence[Sequence[Path]], thermal: ThermalCounters) -> ProcessorReading:
    """Reads what has held the processors back.

    Args:
        groups: Folders of the own control groups, from ``own_groups``.
        thermal: Where the counters of heat are.

    Returns:
        The reading.
    """
    stats = [read_table(folder / "cpu.stat") for levels in groups for folder in levels]
    # Version 2 counts in microseconds, version 1 in nanoseconds.
    microseconds = [stat["throttled_usec"] for stat in stats if "throttled_usec" in stat]
    nanoseconds = [stat["throttled_time"] for stat in stats if "throttled_time" in stat]
    told = bool(microseconds or nanoseconds)
    packages = largest(map(read_number, thermal.packages))
    return ProcessorReading(
        sum(microseconds) / 1e6 + sum(nanoseconds) / 1e9 if told else None,
        total(stat.get("nr_throttled") for stat in stats),
        total(map(read_number, thermal.cores)),
        None if packages is None else int(packages),
    )
