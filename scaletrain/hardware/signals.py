"""The signals that rules judge: each one number of a GPU or of the node, or None where it is not told."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from scaletrain.hardware.readings import GpuReading, GpuState, Reading

_MIB = 2**20
# nvmlClocksEventReason: bits, of which several may be set at once.
_HW_SLOWDOWN, _SW_THERMAL, _HW_THERMAL, _POWER_BRAKE = 0x08, 0x20, 0x40, 0x80
# NVML_GPU_RECOVERY_ACTION: GPU reset, drain and reset, bus reset; node reboot, system reboot; 0 is nothing.
_RESETS, _REBOOTS = (1, 4, 6), (2, 7)
# PCIe links change down when a GPU has nothing to do; a generation is told only from this utilization on.
_LOAD_PERCENT = 50

_OfGpu = Callable[[GpuReading, Reading], float | None]
_OfNode = Callable[[Reading, int | None], float | None]


@dataclass(frozen=True)
class Signal:
    """What a rule may look at.

    Attributes:
        meaning: What the number counts, with its unit.
        of_gpu: Reads it, of one GPU among those of its node.
        of_node: Reads it, of the node, whose GPUs should be as many as the second argument says.
    """

    meaning: str
    of_gpu: _OfGpu | None = None
    of_node: _OfNode | None = None


def _is_state(state: GpuState) -> _OfGpu:
    return lambda gpu, _node: float(gpu.state == state)


def _told(read: Callable[[GpuReading], float | bool | None]) -> _OfGpu:
    def signal(gpu: GpuReading, _node: Reading) -> float | None:
        value = read(gpu)
        return None if value is None else float(value)

    return signal


def _reason(bit: int) -> _OfGpu:
    return _told(lambda gpu: None if gpu.clock_event_reasons is None else bool(gpu.clock_event_reasons & bit))


def _asks(gpu: GpuReading, actions: tuple[int, ...]) -> bool | None:
    return None if gpu.recovery_action is None else gpu.recovery_action in actions


def _asks_otherwise(gpu: GpuReading) -> bool | None:
    return None if gpu.recovery_action is None else gpu.recovery_action not in (0, *_RESETS, *_REBOOTS)


def _above_limit(gpu: GpuReading) -> float | None:
    if gpu.temperature_c is not None and gpu.max_temperature_c:
        return gpu.temperature_c - gpu.max_temperature_c
    if gpu.temperature_margin_c is not None and gpu.max_temperature_margin_c is not None:
        return gpu.max_temperature_margin_c - gpu.temperature_margin_c
    if gpu.temperature_c is not None and gpu.slowdown_temperature_c:
        return gpu.temperature_c - gpu.slowdown_temperature_c
    return None


def _memory_above_limit(gpu: GpuReading) -> float | None:
    if gpu.memory_temperature_c is None or not gpu.max_memory_temperature_c:
        return None
    return gpu.memory_temperature_c - gpu.max_memory_temperature_c


def _links_up(gpu: GpuReading) -> int:
    return sum(link.is_active is True for link in gpu.links)


def _links_missing(gpu: GpuReading, node: Reading) -> float | None:
    """Against the GPU of the same kind that has most: which links are wired at all differs between machines."""
    if gpu.state != "ok" or not gpu.links:
        return None
    return max(_links_up(one) for one in node.gpus if one.name == gpu.name) - _links_up(gpu)


def _link_errors(gpu: GpuReading) -> float | None:
    counts = [count for link in gpu.links for count in (link.replays, link.recoveries, link.crc_errors)]
    told = [count for count in counts if count is not None]
    return sum(told) if told else None


def _generations_lost(gpu: GpuReading) -> float | None:
    if gpu.pcie_generation is None or gpu.max_pcie_generation is None or gpu.utilization_percent is None:
        return None
    return gpu.max_pcie_generation - gpu.pcie_generation if gpu.utilization_percent >= _LOAD_PERCENT else None


def _lanes_lost(gpu: GpuReading) -> float | None:
    if gpu.pcie_width is None or gpu.max_pcie_width is None:
        return None
    return gpu.max_pcie_width - gpu.pcie_width


def _gpus_short(node: Reading, expected: int | None) -> float | None:
    return None if expected is None or node.driver != "ok" else max(0, expected - len(node.gpus))


SIGNALS: Mapping[str, Signal] = MappingProxyType(
    {
        "driver_silent": Signal(
            "1 where the driver does not answer in time", of_node=lambda node, _: float(node.driver == "silent")
        ),
        "driver_failing": Signal(
            "1 where the driver answers with an error, or takes its caller down",
            of_node=lambda node, _: float(node.driver == "failing"),
        ),
        "gpus_short": Signal("GPUs that the job counts on and the driver does not list", of_node=_gpus_short),
        "switch_fatal": Signal("fatal SXIDs of NVSwitches, as the kernel's log tells of them"),
        "switch_other": Signal("other SXIDs of NVSwitches"),
        "lost": Signal("1 where a GPU is lost, or is not listed any more", _is_state("lost")),
        "reset_required": Signal("1 where a GPU says that it must be reset", _is_state("reset_required")),
        "failing": Signal("1 where a GPU does not tell its identity or memory", _is_state("failing")),
        "recovery_reset": Signal("1 where the driver asks for a reset", _told(lambda gpu: _asks(gpu, _RESETS))),
        "recovery_reboot": Signal("1 where the driver asks for a reboot", _told(lambda gpu: _asks(gpu, _REBOOTS))),
        "recovery_other": Signal("1 where it asks for something else", _told(_asks_otherwise)),
        "ecc_uncorrected": Signal(
            "uncorrected errors since the driver was loaded", _told(lambda gpu: gpu.ecc_volatile.uncorrected)
        ),
        "ecc_corrected": Signal(
            "corrected errors since the driver was loaded", _told(lambda gpu: gpu.ecc_volatile.corrected)
        ),
        "ecc_corrected_ever": Signal(
            "corrected errors in the GPU's life", _told(lambda gpu: gpu.ecc_aggregate.corrected)
        ),
        "sram_uncorrected_ever": Signal(
            "uncorrected errors of SRAM in the GPU's life", _told(lambda gpu: gpu.ecc_aggregate.sram_uncorrected)
        ),
        "sram_threshold_exceeded": Signal(
            "1 where the vendor's limit of SRAM errors is passed", _told(lambda gpu: gpu.sram_threshold_exceeded)
        ),
        "row_remap_pending": Signal("1 where a row remap waits for a reset", _told(lambda gpu: gpu.row_remap_pending)),
        "row_remap_failed": Signal("1 where a row could not be remapped", _told(lambda gpu: gpu.row_remap_failed)),
        "pages_pending": Signal("1 where a page retirement waits for a reset", _told(lambda gpu: gpu.pages_pending)),
        "hw_slowdown": Signal("1 while hardware slows the clocks", _reason(_HW_SLOWDOWN)),
        "hw_thermal": Signal("1 while hardware slows the clocks for heat", _reason(_HW_THERMAL)),
        "power_brake": Signal("1 while the power supply slows the clocks", _reason(_POWER_BRAKE)),
        "sw_thermal": Signal("1 while the driver slows the clocks for heat", _reason(_SW_THERMAL)),
        "temperature_excess_c": Signal("degrees above the device's own limit", _told(_above_limit)),
        "memory_temperature_excess_c": Signal(
            "degrees above the device's own limit for its memory", _told(_memory_above_limit)
        ),
        "links_inactive": Signal(
            "NVLinks that are down", _told(lambda gpu: len(gpu.links) - _links_up(gpu) if gpu.links else None)
        ),
        "links_missing": Signal("NVLinks fewer than those of a GPU of the same kind beside it", _links_missing),
        "link_errors": Signal("replays, recoveries and checksum errors of all NVLinks", _told(_link_errors)),
        "pcie_replays": Signal("PCIe packets that were sent again", _told(lambda gpu: gpu.pcie_replays)),
        "pcie_lanes_lost": Signal("PCIe lanes fewer than device and slot have", _told(_lanes_lost)),
        "pcie_generations_lost": Signal(
            f"PCIe generations below the best, at a utilization of {_LOAD_PERCENT} % or more", _told(_generations_lost)
        ),
        "memory_used_mib": Signal(
            "MiB of device memory that processes hold",
            _told(lambda gpu: None if gpu.memory_used_bytes is None else gpu.memory_used_bytes / _MIB),
        ),
        "processes": Signal(
            "processes that compute on the GPU",
            _told(lambda gpu: None if gpu.processes is None else len(gpu.processes)),
        ),
        "nvlink5_no_reset": Signal("XIDs 144 to 150 whose sub-code needs no reset, as the kernel's log tells it"),
        "xid": Signal("XIDs of the code that the rule names; without a code, those that no other rule names"),
    }
)
