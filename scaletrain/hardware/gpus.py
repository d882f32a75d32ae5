"""What NVIDIA's driver says of the health of a node's GPUs, before a job begins.

``python -m scaletrain.hardware.gpus COUNT`` prints the findings as JSON: a process of its own, since a call into a sick
driver may never return.
"""

import contextlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pynvml

from scaletrain.hardware.bounded import announce
from scaletrain.hardware.findings import Finding, Status


def check_gpus(expected: int) -> list[Finding]:
    """Asks each GPU.

    Source: NVML API reference, nvmlDeviceGetRemappedRows (a pending row remap takes effect with a reset, and a failed
    one means that no spare row is left) and nvmlDeviceGetTotalEccErrors (volatile: since the driver was loaded).

    Args:
        expected: GPUs that the job counts on.

    Returns:
        The findings; what a device does not support is unknown.
    """
    announce("asks the driver")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError_LibraryNotFound as error:
        return [Finding("nvml", "unknown", f"not available: {error}")]
    except pynvml.NVMLError as error:
        return [_silent_driver(error)]
    try:
        count = pynvml.nvmlDeviceGetCount()
        findings = [_counted(count, expected)]
        for index in range(count):
            findings += _check_gpu(index)
        return findings
    except pynvml.NVMLError as error:
        return [_silent_driver(error)]
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _silent_driver(error: Exception) -> Finding:
    return Finding("nvml", "fail", f"the driver does not answer: {error}; reset the GPUs or reboot the node")


def _counted(count: int, expected: int) -> Finding:
    if count < expected:
        return Finding("gpus", "fail", f"the driver shows {count} of {expected}; look for one that fell off the bus")
    return Finding("gpus", "ok", f"{count} of {expected}")


def _check_gpu(index: int) -> list[Finding]:
    announce(f"asks GPU {index}")
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        with contextlib.suppress(*_not_told()):  # a GPU that shares the host's memory has none to tell of
            pynvml.nvmlDeviceGetMemoryInfo(handle)
    except pynvml.NVMLError as error:
        return [Finding(f"gpu {index}", "fail", f"does not answer: {error}; reset it or reboot the node")]
    return [
        _ask(f"gpu {index} rows", lambda: pynvml.nvmlDeviceGetRemappedRows(handle), _judge_rows),
        _ask(
            f"gpu {index} ecc",
            lambda: pynvml.nvmlDeviceGetTotalEccErrors(
                handle, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
            ),
            _judge_ecc,
        ),
    ]


def _ask(check: str, call: Callable[[], Any], judge: Callable[[Any], tuple[Status, str]]) -> Finding:
    try:
        return Finding(check, *judge(call()))
    except _not_told() as error:
        return Finding(check, "unknown", f"not supported by this GPU or driver, or not allowed: {error}")
    except pynvml.NVMLError as error:
        return Finding(check, "fail", f"does not answer: {error}; reset it or reboot the node")


def _not_told() -> tuple[type[Exception], ...]:
    """What a sound GPU answers where it, its driver or this user's rights do not allow more."""
    return pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound, pynvml.NVMLError_NoPermission


def _judge_rows(rows: Any) -> tuple[Status, str]:
    _corrected, uncorrected, is_pending, has_failed = rows
    if has_failed:
        return "fail", "a row could not be remapped: no spare is left; have the GPU replaced"
    if is_pending:
        return "fail", "a remapped row waits for a reset; reset the GPU"
    return "ok", f"{uncorrected} remapped after uncorrectable errors"


def _judge_ecc(errors: int) -> tuple[Status, str]:
    if errors:
        return "warn", f"{errors} uncorrectable errors since the driver was loaded; watch it"
    return "ok", "no uncorrectable error since the driver was loaded"


if __name__ == "__main__":
    print(json.dumps([asdict(finding) for finding in check_gpus(int(sys.argv[1]))]))
