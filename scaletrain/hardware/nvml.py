"""Reads all that NVIDIA's driver tells of a node's GPUs, with nothing made up for what it does not tell.

A call into a sick driver may never return: ``prober.py`` beside it runs this in a process of its own.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import pynvml

from scaletrain.hardware.readings import (
    EccCounts,
    GpuProcess,
    GpuReading,
    GpuState,
    LinkReading,
    Reading,
    XidEvent,
    uptime_s,
)
from scaletrain.hardware.xids import normalise_bus_id

_MOST_EVENTS = 1000  # of one reading, so that a flood of them ends
_MOST_LINKS = 36
_WATT_PER_MILLIWATT = 1e-3
# Fields of NVML's table of field values, by what they are here; the second number is the scope.
_OWN_FIELDS = {
    "recovery_action": "NVML_FI_DEV_GET_GPU_RECOVERY_ACTION",
    "memory_temperature_c": "NVML_FI_DEV_MEMORY_TEMP",
    "max_temperature_margin_c": "NVML_FI_DEV_TEMPERATURE_GPU_MAX_TLIMIT",
}
_LINK_FIELDS = {
    "replays": "NVML_FI_DEV_NVLINK_ERROR_DL_REPLAY",
    "recoveries": "NVML_FI_DEV_NVLINK_ERROR_DL_RECOVERY",
    "crc_errors": "NVML_FI_DEV_NVLINK_ERROR_DL_CRC",
    "recovery_events": "NVML_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_EVENTS",  # instead of recoveries, from Blackwell on
}
_LINK_COUNTERS = {
    "replays": "NVML_NVLINK_ERROR_DL_REPLAY",
    "recoveries": "NVML_NVLINK_ERROR_DL_RECOVERY",
    "crc_errors": "NVML_NVLINK_ERROR_DL_CRC_FLIT",
}
# By NVML's type of value, its member of the union.
_VALUE_MEMBERS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")


class NvmlReader:
    """Reads the GPUs of this node, one reading after another.

    Args:
        announce: Told what the driver is asked next, and about which GPU.
    """

    def __init__(self, announce: Callable[[str, int | None], None] = lambda _doing, _gpu: None) -> None:
        self._announce = announce
        self._is_open = False
        self._events: Any = None
        self._hears_xids = False
        self._links: dict[str, tuple[int, ...]] = {}

    def read(self) -> Reading:
        """Asks for everything.

        Returns:
            The reading; errors of the driver and of its GPUs are in it.
        """
        try:
            if not self._is_open:
                self._announce("start", None)
                pynvml.nvmlInit()
                self._is_open = True
            self._announce("count of GPUs", None)
            count = pynvml.nvmlDeviceGetCount()
        except pynvml.NVMLError_LibraryNotFound as error:
            return Reading("absent", str(error), uptime_s=uptime_s())
        except pynvml.NVMLError as error:
            self.close()
            return Reading("failing", str(error), uptime_s=uptime_s())
        devices = [_Device(index, self._announce) for index in range(count)]
        for device in devices:
            device.open()
        devices = [device for device in devices if device.is_allowed]
        gpus = tuple(self._read_gpu(device) for device in devices)
        self._announce("XID events", None)
        xids = self._read_events(devices, gpus)
        return Reading("ok", "", None, *_versions(), uptime_s(), gpus, xids, self._hears_xids)

    def close(self) -> None:
        """Lets go of the driver; the next reading begins anew."""
        self._free_events()
        if self._is_open:
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()
        self._is_open = False

    def _read_gpu(self, device: "_Device") -> GpuReading:
        parts: dict[str, Any] = {}
        for doing, read in (
            ("its identity", _identity),
            ("its memory", _memory),
            ("temperatures and power", _temperatures_and_power),
            ("clocks", _clocks),
            ("ECC", _ecc),
            ("remapped rows and retired pages", _repairs),
            ("PCIe", _pcie),
            ("field values", _own_fields),
        ):
            device.begin(doing)
            parts |= read(device)
        device.begin("NVLinks")
        known = self._links.get(parts["uuid"] or "")
        links = _links(device, range(_MOST_LINKS) if known is None else known)
        if parts["uuid"] and device.state == "ok":
            self._links.setdefault(parts["uuid"], tuple(one.link for one in links))
        return GpuReading(device.index, device.state, device.detail, links=links, **parts)

    def _read_events(self, devices: Sequence["_Device"], gpus: Sequence[GpuReading]) -> tuple[XidEvent, ...]:
        found: list[XidEvent] = []
        try:
            if self._events is None:
                self._events = pynvml.nvmlEventSetCreate()
                self._hears_xids = any([device.listen(self._events) for device in devices])
            while len(found) < _MOST_EVENTS:
                event = pynvml.nvmlEventSetWait(self._events, 0)
                if event.eventType == pynvml.nvmlEventTypeXidCriticalError:
                    found.append(XidEvent(int(event.eventData), _bus_id_of(event.device, devices, gpus)))
        except pynvml.NVMLError_Timeout:
            pass
        except pynvml.NVMLError:
            # One GPU that is lost silences all: listen anew to those that are left.
            self._free_events()
        return tuple(found)

    def _free_events(self) -> None:
        if self._events is not None:
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlEventSetFree(self._events)
        self._events = None


class _Device:
    """A GPU that is asked; what an answer says of its state is kept."""

    def __init__(self, index: int, announce: Callable[[str, int | None], None]) -> None:
        self.index, self._announce = index, announce
        self.state: GpuState = "ok"
        self.detail = ""
        self.handle: Any = None
        self.is_allowed = True

    def open(self) -> None:
        """Gets what the driver knows it by. It counts those, too, that this user may not ask."""
        self.begin("the handle")
        try:
            self.handle = pynvml.nvmlDeviceGetHandleByIndex(self.index)
        except pynvml.NVMLError_NoPermission:
            self.is_allowed = False
        except pynvml.NVMLError as error:
            self.state = "failing"
            self._note(error)

    def begin(self, doing: str) -> None:
        """Says what is asked next."""
        self._announce(doing, self.index)

    def ask(self, call: str, *arguments: Any, must_answer: bool = False) -> Any:
        """The answer; None where the device, the driver, this client or the user's rights do not give one.

        Args:
            call: Name in pynvml.
            arguments: Behind the handle.
            must_answer: Whether any error but "not supported" means that something is wrong with the GPU.
        """
        function = getattr(pynvml, call, None)
        if function is None or self.handle is None or self.state == "lost":
            return None
        try:
            return function(self.handle, *arguments)
        except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound, pynvml.NVMLError_NoPermission):
            return None
        except pynvml.NVMLError as error:
            if must_answer and self.state == "ok":
                self.state, self.detail = "failing", f"{call}: {error}"
            self._note(error)
            return None

    def ask_number(self, call: str, *constants: str) -> int | None:
        """The same for a call that gives a number, whose further arguments are constants of pynvml by their names."""
        arguments = [getattr(pynvml, name, None) for name in constants]
        answer = None if None in arguments else self.ask(call, *arguments)
        return None if answer is None else int(answer)

    def fields(self, wanted: Sequence[tuple[str, int]]) -> list[int | None]:
        """Values of NVML's table of fields, by name and scope."""
        ids = [(getattr(pynvml, name, None), scope) for name, scope in wanted]
        known = [(one, scope) for one, scope in ids if one is not None]
        values = self.ask("nvmlDeviceGetFieldValues", known) if known else None
        if values is None:
            return [None] * len(wanted)
        told = {(one.fieldId, one.scopeId): _value(one) for one in values if one.nvmlReturn == pynvml.NVML_SUCCESS}
        return [told.get(one) for one in ids]

    def listen(self, events: Any) -> bool:
        """Has its XIDs told to a set of events; returns whether they are."""
        kind = pynvml.nvmlEventTypeXidCriticalError
        if not kind & (self.ask("nvmlDeviceGetSupportedEventTypes") or 0):
            return False
        try:
            pynvml.nvmlDeviceRegisterEvents(self.handle, kind, events)
        except pynvml.NVMLError as error:
            self._note(error)
            return False
        return True

    def _note(self, error: Exception) -> None:
        if isinstance(error, pynvml.NVMLError_GpuIsLost):
            self.state = "lost"
        elif isinstance(error, pynvml.NVMLError_ResetRequired) and self.state != "lost":
            self.state = "reset_required"
        if self.state != "ok" and not self.detail:
            self.detail = str(error)


def _versions() -> tuple[str | None, str | None]:
    """Of the driver, and of the CUDA that it supports."""
    driver = cuda = None
    with contextlib.suppress(pynvml.NVMLError):
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
    with contextlib.suppress(pynvml.NVMLError):
        number = int(pynvml.nvmlSystemGetCudaDriverVersion_v2())
        cuda = f"{number // 1000}.{number % 1000 // 10}"
    return driver, cuda


def _identity(device: _Device) -> dict[str, Any]:
    place = device.ask("nvmlDeviceGetPciInfo")
    bus_id = place.busId if place else None
    return {
        "uuid": _text(device.ask("nvmlDeviceGetUUID", must_answer=True)),
        "serial": _text(device.ask("nvmlDeviceGetSerial")),
        "name": _text(device.ask("nvmlDeviceGetName")),
        "bus_id": normalise_bus_id(_text(bus_id) or ""),
        "is_mig_enabled": _flag((device.ask("nvmlDeviceGetMigMode") or [None])[0]),
    }


def _memory(device: _Device) -> dict[str, Any]:
    # The first version counts what the driver sets aside as used, on drivers that know the second (R510 and later).
    version = getattr(pynvml, "nvmlMemory_v2", None)
    memory = device.ask("nvmlDeviceGetMemoryInfo", version) if version else None
    used = memory.total - memory.free - memory.reserved if memory else None
    if memory is None:
        memory = device.ask("nvmlDeviceGetMemoryInfo", must_answer=True)
        used = memory.used if memory else None
    processes = device.ask("nvmlDeviceGetComputeRunningProcesses_v3")
    if processes is None:
        processes = device.ask("nvmlDeviceGetComputeRunningProcesses_v2")
    return {
        "memory_total_bytes": memory.total if memory else None,
        "memory_used_bytes": used,
        "processes": None if processes is None else tuple(GpuProcess(one.pid, one.usedGpuMemory) for one in processes),
    }


def _temperatures_and_power(device: _Device) -> dict[str, Any]:
    def threshold(kind: str) -> int | None:
        return device.ask_number("nvmlDeviceGetTemperatureThreshold", f"NVML_TEMPERATURE_THRESHOLD_{kind}")

    power, limit = device.ask("nvmlDeviceGetPowerUsage"), device.ask("nvmlDeviceGetEnforcedPowerLimit")
    temperature = device.ask_number("nvmlDeviceGetTemperature", "NVML_TEMPERATURE_GPU")
    if temperature is None:  # to be removed from the driver, by NVML's manual
        temperature = device.ask_number("nvmlDeviceGetTemperatureV", "NVML_TEMPERATURE_GPU")
    return {
        "temperature_c": temperature,
        "temperature_margin_c": device.ask_number("nvmlDeviceGetMarginTemperature"),
        "max_temperature_c": threshold("GPU_MAX"),
        "slowdown_temperature_c": threshold("SLOWDOWN"),
        "shutdown_temperature_c": threshold("SHUTDOWN"),
        "max_memory_temperature_c": threshold("MEM_MAX"),
        "power_w": None if power is None else power * _WATT_PER_MILLIWATT,
        "power_limit_w": None if limit is None else limit * _WATT_PER_MILLIWATT,
    }


def _clocks(device: _Device) -> dict[str, Any]:
    reasons = device.ask_number("nvmlDeviceGetCurrentClocksEventReasons")
    if reasons is None:  # its name before R535
        reasons = device.ask_number("nvmlDeviceGetCurrentClocksThrottleReasons")
    utilization = device.ask("nvmlDeviceGetUtilizationRates")
    return {
        "clock_mhz": device.ask_number("nvmlDeviceGetClockInfo", "NVML_CLOCK_SM"),
        "max_clock_mhz": device.ask_number("nvmlDeviceGetMaxClockInfo", "NVML_CLOCK_SM"),
        "memory_clock_mhz": device.ask_number("nvmlDeviceGetClockInfo", "NVML_CLOCK_MEM"),
        "max_memory_clock_mhz": device.ask_number("nvmlDeviceGetMaxClockInfo", "NVML_CLOCK_MEM"),
        "clock_event_reasons": reasons,
        "utilization_percent": utilization.gpu if utilization else None,
    }


def _ecc(device: _Device) -> dict[str, Any]:
    def counts(counter: str) -> EccCounts:
        told: dict[str, int | None] = {}
        for kind in ("CORRECTED", "UNCORRECTED"):
            error = f"NVML_MEMORY_ERROR_TYPE_{kind}"
            told[kind.lower()] = device.ask_number("nvmlDeviceGetTotalEccErrors", error, counter)
            for place in ("SRAM", "DRAM"):
                location = f"NVML_MEMORY_LOCATION_{place}"
                number = device.ask_number("nvmlDeviceGetMemoryErrorCounter", error, counter, location)
                told[f"{place}_{kind}".lower()] = number
        return EccCounts(**told)

    exceeded = None
    make_status = getattr(pynvml, "c_nvmlEccSramErrorStatus_v1_t", None)
    if make_status:
        status = make_status()
        answered = device.ask("nvmlDeviceGetSramEccErrorStatus", pynvml.byref(status))
        exceeded = None if answered is None else _flag(status.bThresholdExceeded)
    return {
        "is_ecc_enabled": _flag((device.ask("nvmlDeviceGetEccMode") or [None])[0]),
        "ecc_volatile": counts("NVML_VOLATILE_ECC"),
        "ecc_aggregate": counts("NVML_AGGREGATE_ECC"),
        "sram_threshold_exceeded": exceeded,
    }


def _repairs(device: _Device) -> dict[str, Any]:
    corrected, uncorrected, pending, failed = device.ask("nvmlDeviceGetRemappedRows") or [None] * 4

    def retired(cause: str) -> int | None:
        pages = device.ask("nvmlDeviceGetRetiredPages", getattr(pynvml, f"NVML_PAGE_RETIREMENT_CAUSE_{cause}"))
        return None if pages is None else len(pages)

    return {
        "rows_corrected": corrected,
        "rows_uncorrected": uncorrected,
        "row_remap_pending": _flag(pending),
        "row_remap_failed": _flag(failed),
        "pages_single_bit": retired("MULTIPLE_SINGLE_BIT_ECC_ERRORS"),
        "pages_double_bit": retired("DOUBLE_BIT_ECC_ERROR"),
        "pages_pending": _flag(device.ask("nvmlDeviceGetRetiredPagesPendingStatus")),
    }


def _pcie(device: _Device) -> dict[str, Any]:
    return {
        "pcie_generation": device.ask_number("nvmlDeviceGetCurrPcieLinkGeneration"),
        "max_pcie_generation": device.ask_number("nvmlDeviceGetMaxPcieLinkGeneration"),
        "pcie_width": device.ask_number("nvmlDeviceGetCurrPcieLinkWidth"),
        "max_pcie_width": device.ask_number("nvmlDeviceGetMaxPcieLinkWidth"),
        "pcie_replays": device.ask_number("nvmlDeviceGetPcieReplayCounter"),
    }


def _own_fields(device: _Device) -> dict[str, Any]:
    return dict(zip(_OWN_FIELDS, device.fields([(name, 0) for name in _OWN_FIELDS.values()]), strict=True))


def _links(device: _Device, numbers: Sequence[int]) -> tuple[LinkReading, ...]:
    states = {number: device.ask("nvmlDeviceGetNvLinkState", number) for number in numbers}
    there = [number for number, state in states.items() if state is not None]
    told = device.fields([(field, number) for number in there for field in _LINK_FIELDS.values()])
    links = []
    for place, number in enumerate(there):
        first = place * len(_LINK_FIELDS)
        counts = dict(zip(_LINK_FIELDS, told[first : first + len(_LINK_FIELDS)], strict=True))
        recovery_events = counts.pop("recovery_events")
        if all(count is None for count in counts.values()):
            counts = {
                name: device.ask("nvmlDeviceGetNvLinkErrorCounter", number, getattr(pynvml, constant))
                for name, constant in _LINK_COUNTERS.items()
            }
        if counts["recoveries"] is None:
            counts["recoveries"] = recovery_events
        links.append(LinkReading(number, bool(states[number]), **counts))
    return tuple(links)


def _bus_id_of(handle: Any, devices: Sequence[_Device], gpus: Sequence[GpuReading]) -> str | None:
    address = pynvml.cast(handle, pynvml.c_void_p).value
    for device, gpu in zip(devices, gpus, strict=True):
        if device.handle is not None and pynvml.cast(device.handle, pynvml.c_void_p).value == address:
            return gpu.bus_id
    return None


def _value(field: Any) -> int:
    return int(getattr(field.value, _VALUE_MEMBERS[field.valueType]))


def _text(value: str | bytes | None) -> str | None:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _flag(value: int | None) -> bool | None:
    return None if value is None else bool(value)
