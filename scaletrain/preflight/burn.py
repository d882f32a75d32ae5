"""Whether torch can be imported on a node, sees its devices, and they multiply without an error.

``python -m scaletrain.preflight.burn GPUS [SECONDS]`` prints findings as JSON; with SECONDS the devices also show that
they always calculate the same bits, see ``checksum.py``.
"""

import json
import os
import sys
import time
from dataclasses import asdict

import torch

from scaletrain.hardware.bounded import announce
from scaletrain.hardware.findings import Finding
from scaletrain.preflight.checksum import compare_checksums

_SIZE = 1024
_SECONDS = 1.0
_LARGEST = 8
"""Whole numbers up to this, multiplied and summed 1024 times, stay below 2**24: fp32 holds them without rounding."""


def burn(gpus: int) -> list[Finding]:
    """Multiplies matrices of whole numbers on each device for a second, and compares every number with the exact one.

    Args:
        gpus: GPUs that the job counts on; 0 calculates on the CPU.

    Returns:
        A finding for each device.
    """
    if gpus == 0:
        return [_multiply("cpu", torch.device("cpu"))]
    announce("asks torch for the GPUs")
    seen = torch.cuda.device_count()
    if seen < gpus:
        text = f"torch {torch.__version__} sees {seen} of {gpus} GPUs"
        if torch.version.cuda is None and torch.version.hip is None:
            return [Finding("torch", "fail", f"{text}: it was built for CPUs; install one for this node's driver")]
        return [Finding("torch", "fail", f"{text}; compare with nvidia-smi, and look at CUDA_VISIBLE_DEVICES")]
    return [_multiply(f"gpu {index}", torch.device("cuda", index)) for index in range(gpus)]


def _multiply(name: str, device: torch.device) -> Finding:
    announce(f"multiplies on {name}")
    check = f"{name} arithmetic"
    generator = torch.Generator().manual_seed(7)
    left, right = (torch.randint(-_LARGEST, _LARGEST + 1, (_SIZE, _SIZE), generator=generator) for _ in range(2))
    # In fp64 on the CPU: without the device, and for a CPU by other instructions than those that are tested.
    exact = (left.double() @ right.double()).float()
    try:
        left_there, right_there, exact_there = (matrix.float().to(device) for matrix in (left, right, exact))
        products, started_s = 0, time.monotonic()
        while products == 0 or time.monotonic() - started_s < _SECONDS:
            wrong = int((left_there @ right_there != exact_there).sum())
            if wrong:
                text = f"{wrong} of {_SIZE**2} numbers of a product are wrong, after {products} right products"
                return Finding(check, "fail", f"{text}; have the device tested, and do not train on it")
            products += 1
    except RuntimeError as error:  # the device's own errors, such as an uncorrectable one of its memory
        return Finding(check, "fail", f"{str(error).splitlines()[0]}; reset the GPU or reboot the node")
    rate = 2 * _SIZE**3 * products / (time.monotonic() - started_s) / 1e12
    return Finding(check, "ok", f"{products} products without an error, {rate:.2g} TFLOP/s in fp32")


def main(gpus: int, seconds: float) -> None:
    """Prints what is found; checksums are left out where a device is wrong already, and for no seconds."""
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # as the driver numbers them
    torch.set_num_threads(min(2, torch.get_num_threads()))
    findings = burn(gpus)
    if seconds and all(one.status == "ok" for one in findings):
        findings += compare_checksums(gpus, seconds)
    print(json.dumps([asdict(one) for one in findings]))


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 0.0)
