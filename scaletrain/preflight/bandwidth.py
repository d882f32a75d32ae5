"""How fast memory is, and the way between host and GPUs.

``python -m scaletrain.preflight.bandwidth GPUS`` prints findings as JSON. It only measures: ``hardware/rates.py`` says
what is too slow.
"""

import json
import os
import sys
import time
from dataclasses import asdict
from statistics import median

import torch

from scaletrain.hardware.bounded import announce
from scaletrain.hardware.findings import Finding

_GPU_MIB, _CPU_MIB, _HOST_MIB = 1024, 128, 256
_REPEATS = 10


def measure_bandwidth(gpus: int) -> list[Finding]:
    """Copies within the memory of each device, one after the other, and between it and pinned memory of the host.

    Args:
        gpus: How many GPUs; 0 measures the host's memory.

    Returns:
        A finding for each device, with medians in 10^9 bytes per second; of memory, what is read and written together.
    """
    if gpus == 0:
        rate = _memory(torch.device("cpu"), _CPU_MIB)
        threads = torch.get_num_threads()
        text = f"{rate:.3g} GB/s read and written by {threads} threads"
        return [Finding("cpu bandwidth", "ok", text, {"memory_gb_per_s": rate})]
    return [_measure(f"gpu {index}", torch.device("cuda", index)) for index in range(gpus)]


def _measure(name: str, device: torch.device) -> Finding:
    announce(f"copies within {name}, and from and to it")
    try:
        memory = _memory(device, _GPU_MIB)
        here = torch.zeros(_HOST_MIB << 20, dtype=torch.uint8, pin_memory=True)
        there = torch.zeros(_HOST_MIB << 20, dtype=torch.uint8, device=device)
        to_device = here.numel() / _seconds(there, here) / 1e9
        from_device = here.numel() / _seconds(here, there) / 1e9
    except RuntimeError as error:  # the device's own errors, and no memory
        text = f"{str(error).splitlines()[0]}; look for processes that use the GPU, or reset it"
        return Finding(f"{name} bandwidth", "fail", text)
    text = f"memory {memory:.4g} GB/s read and written, from the host {to_device:.3g}, to the host {from_device:.3g}"
    figures = {"memory_gb_per_s": memory, "to_device_gb_per_s": to_device, "from_device_gb_per_s": from_device}
    return Finding(f"{name} bandwidth", "ok", text, figures)


def _memory(device: torch.device, mib: int) -> float:
    source, target = (torch.zeros(mib << 20, dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * source.numel() / _seconds(target, source) / 1e9


def _seconds(target: torch.Tensor, source: torch.Tensor) -> float:
    """The median time of a copy; the first one, which meets memory that was not touched, does not count."""
    gpu = next((one.device for one in (target, source) if one.device.type == "cuda"), None)
    taken_s = []
    for _ in range(_REPEATS + 1):
        _finish(gpu)
        started_s = time.monotonic()
        target.copy_(source, non_blocking=True)
        _finish(gpu)
        taken_s.append(time.monotonic() - started_s)
    return median(taken_s[1:])


def _finish(gpu: torch.device | None) -> None:
    if gpu is not None:
        torch.cuda.synchronize(gpu)


if __name__ == "__main__":
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # as the driver numbers them
    print(json.dumps([asdict(one) for one in measure_bandwidth(int(sys.argv[1]))]))
