"""What a driver tells of a node's GPUs at one moment, as plain data that passes through a pipe as JSON.

Whatever a device, its driver or this user's rights do not tell is None: never 0.
"""

import contextlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

# ok: it answers. lost: it fell off the bus, or is not listed any more. reset_required: it says so itself.
# failing: it does not even tell its memory, for another reason.
GpuState = Literal["ok", "lost", "reset_required", "failing"]
# ok: it answers. absent: there is no NVIDIA driver here. failing: it says so, or takes its caller down with it.
# silent: a call did not return in time. unasked: it was not asked, as in the pause after a failure.
DriverState = Literal["ok", "absent", "failing", "silent", "unasked"]


@dataclass(frozen=True)
class EccCounts:
    """Errors of the memories that ECC guards, in all and by kind of memory.

    Attributes:
        corrected: Single bit errors, of all memories.
        uncorrected: Errors that ECC could only detect, of all memories.
        sram_corrected: Of caches, registers and the like.
        sram_uncorrected: The same, uncorrected.
        dram_corrected: Of the device memory.
        dram_uncorrected: The same, uncorrected.
    """

    corrected: int | None = None
    uncorrected: int | None = None
    sram_corrected: int | None = None
    sram_uncorrected: int | None = None
    dram_corrected: int | None = None
    dram_uncorrected: int | None = None


@dataclass(frozen=True)
class LinkReading:
    """One NVLink of a GPU.

    Attributes:
        link: Its number.
        is_active: Whether it is up.
        replays: Packets that were sent again.
        recoveries: Times that the link was trained anew.
        crc_errors: Packets whose checksum was wrong.
    """

    link: int
    is_active: bool | None = None
    replays: int | None = None
    recoveries: int | None = None
    crc_errors: int | None = None


@dataclass(frozen=True)
class GpuProcess:
    """A process that computes on a GPU.

    Attributes:
        pid: Its number, as the host counts: in a container it may be nobody's.
        memory_bytes: What it holds of the device's memory.
    """

    pid: int
    memory_bytes: int | None = None


@dataclass(frozen=True)
class XidEvent:
    """An error that the driver told of once, by a number of NVIDIA's catalogue.

    Attributes:
        code: The XID, or of a switch the SXID.
        bus_id: Of the GPU or switch, as ``xids.normalise_bus_id`` writes it.
        text: What else was said.
        origin: Who told: NVML's events, or the kernel's log.
        is_switch: Whether it is an NVSwitch's.
        is_fatal: Of a switch: whether the driver calls it fatal.
    """

    code: int
    bus_id: str | None
    text: str = ""
    origin: Literal["nvml", "kernel log"] = "nvml"
    is_switch: bool = False
    is_fatal: bool = False


@dataclass(frozen=True)
class GpuReading:
    """One GPU at one moment. ``None``: not told.

    Attributes:
        index: Number that the driver gives it; may shift when another GPU disappears.
        state: Whether it answers.
        detail: The driver's words where it does not.
        uuid: What it is known by for ever.
        serial: Number of the board.
        bus_id: Place on the PCI bus, as ``xids.normalise_bus_id`` writes it.
        name: The vendor's name.
        temperature_c: Of the chip.
        memory_temperature_c: Of the device memory.
        temperature_margin_c: Degrees left below the device's limit (from Ada and Hopper on).
        max_temperature_c: The device's own: highest at which it is meant to work.
        slowdown_temperature_c: The device's own: from here on it slows down.
        shutdown_temperature_c: The device's own: from here on it shuts down.
        max_memory_temperature_c: The device's own, for its memory.
        max_temperature_margin_c: The device's own, as a margin.
        power_w: Drawn now.
        power_limit_w: The limit in force.
        clock_mhz: Of the streaming multiprocessors.
        max_clock_mhz: The highest of these.
        memory_clock_mhz: Of the device memory.
        max_memory_clock_mhz: The highest of these.
        clock_event_reasons: Why the clocks are not higher, as bits (NVML's ``nvmlClocksEventReason``).
        utilization_percent: Share of the last sampling period in which a kernel ran.
        is_ecc_enabled: Whether ECC is on.
        ecc_volatile: Errors since the driver was loaded.
        ecc_aggregate: Errors in the device's life.
        sram_threshold_exceeded: Whether the vendor's own limit of SRAM errors is passed.
        rows_corrected: Rows remapped because of corrected errors.
        rows_uncorrected: Rows remapped because of uncorrected errors.
        row_remap_pending: Whether a remap waits for a reset.
        row_remap_failed: Whether a row could not be remapped.
        pages_single_bit: Pages retired because of single bit errors (Volta and older).
        pages_double_bit: Pages retired because of double bit errors.
        pages_pending: Whether a retirement waits for a reset.
        pcie_generation: Of the link now; drops when idle.
        max_pcie_generation: The highest that device and slot have.
        pcie_width: Lanes now.
        max_pcie_width: The most that device and slot have.
        pcie_replays: Packets that were sent again.
        links: Its NVLinks; none: it has none, or does not tell.
        memory_used_bytes: By processes, without what the driver sets aside.
        memory_total_bytes: All of it.
        processes: Those that compute on it.
        recovery_action: What the driver asks for (NVML's ``NVML_GPU_RECOVERY_ACTION``); 0 is nothing.
        is_mig_enabled: Whether it is cut into instances.
    """

    index: int
    state: GpuState = "ok"
    detail: str = ""
    uuid: str | None = None
    serial: str | None = None
    bus_id: str | None = None
    name: str | None = None
    temperature_c: int | None = None
    memory_temperature_c: int | None = None
    temperature_margin_c: int | None = None
    max_temperature_c: int | None = None
    slowdown_temperature_c: int | None = None
    shutdown_temperature_c: int | None = None
    max_memory_temperature_c: int | None = None
    max_temperature_margin_c: int | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    clock_mhz: int | None = None
    max_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    max_memory_clock_mhz: int | None = None
    clock_event_reasons: int | None = None
    utilization_percent: int | None = None
    is_ecc_enabled: bool | None = None
    ecc_volatile: EccCounts = EccCounts()
    ecc_aggregate: EccCounts = EccCounts()
    sram_threshold_exceeded: bool | None = None
    rows_corrected: int | None = None
    rows_uncorrected: int | None = None
    row_remap_pending: bool | None = None
    row_remap_failed: bool | None = None
    pages_single_bit: int | None = None
    pages_double_bit: int | None = None
    pages_pending: bool | None = None
    pcie_generation: int | None = None
    max_pcie_generation: int | None = None
    pcie_width: int | None = None
    max_pcie_width: int | None = None
    pcie_replays: int | None = None
    links: tuple[LinkReading, ...] = ()
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    processes: tuple[GpuProcess, ...] | None = None
    recovery_action: int | None = None
    is_mig_enabled: bool | None = None


@dataclass(frozen=True)
class Reading:
    """A node at one moment.

    Attributes:
        driver: Whether the driver answers.
        detail: Its words where it does not; where it is silent, what it was asked.
        asked_gpu: Index of the GPU that it was asked about when it fell silent.
        version: Of the driver.
        cuda_version: The highest version of CUDA that the driver supports, such as "12.8".
        uptime_s: Since the machine was booted.
        gpus: All GPUs that it lists.
        xids: What it told of since the reading before.
        hears_xids: Whether NVML tells this user of XIDs.
        kernel_log: Where the kernel's log was read; None where it may not be.
    """

    driver: DriverState
    detail: str = ""
    asked_gpu: int | None = None
    version: str | None = None
    cuda_version: str | None = None
    uptime_s: float | None = None
    gpus: tuple[GpuReading, ...] = ()
    xids: tuple[XidEvent, ...] = ()
    hears_xids: bool = False
    kernel_log: str | None = None

    def to_json(self) -> str:
        """One line of JSON that ``from_json`` reads."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "Reading":
        """Reads what ``to_json`` wrote.

        Raises:
            ValueError: It is not JSON.
            TypeError: It is another object.
        """
        content = json.loads(text)
        content["gpus"] = tuple(_gpu(one) for one in content["gpus"])
        content["xids"] = tuple(XidEvent(**one) for one in content["xids"])
        return cls(**content)


def _gpu(content: dict[str, Any]) -> GpuReading:
    content["ecc_volatile"] = EccCounts(**content["ecc_volatile"])
    content["ecc_aggregate"] = EccCounts(**content["ecc_aggregate"])
    content["links"] = tuple(LinkReading(**one) for one in content["links"])
    if content["processes"] is not None:
        content["processes"] = tuple(GpuProcess(**one) for one in content["processes"])
    return GpuReading(**content)


def untold(gpu: GpuReading) -> list[str]:
    """Names of what a GPU that answers does not tell."""
    counts = {
        f"{counter}.{one.name}": getattr(getattr(gpu, counter), one.name)
        for counter in ("ecc_volatile", "ecc_aggregate")
        for one in fields(EccCounts)
    }
    plain = {one.name: getattr(gpu, one.name) for one in fields(gpu)}
    return [name for name, value in (plain | counts).items() if value is None]


def uptime_s() -> float | None:
    """Seconds since the machine was booted."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return float(Path("/proc/uptime").read_text().split()[0])
    return None
