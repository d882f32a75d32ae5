"""Whether torch can be imported on a node, sees its devices, and they multiply without an error.

``python -m scaletrain.preflight.burn GPUS`` prints findings as JSON.
"""

import json
import sys
import time
from dataclasses import asdict

import torch

from scaletrain.hardware.findings import Finding

_SIZE = 1024
_SECONDS = 1.0
_LARGEST = 8
"""Whole numbers up to this, multiplied and summed 1024 times, stay below 2**24: fp32 holds them without rounding."""


def burn(gpus: int) -> list[Finding]:
    """Multiplies matrices of whole numbers on each device for a second.

    Args:
        gpus: GPUs that the job counts on; 0 calculates on the CPU.

    Returns:
        A finding for each device.
    """
    if gpus == 0:
        return [_multiply("cpu", torch.device("cpu"))]
    seen = torch.cuda.device_count()
    if seen < gpus:
        return [Finding("torch", "fail", f"torch {torch.__version__} sees {seen} of {gpus} GPUs")]
    return [_multiply(f"gpu {index}", torch.device("cuda", index)) for index in range(gpus)]


def _multiply(name: str, device: torch.device) -> Finding:
    generator = torch.Generator().manual_seed(7)
    left, right = (torch.randint(-_LARGEST, _LARGEST + 1, (_SIZE, _SIZE), generator=generator) for _ in range(2))
    left_there, right_there = left.float().to(device), right.float().to(device)
    # By whole numbers of 64 bits, on the CPU, and only a part: a product of its own, without the device's kernels.
    expected = (left[:8] @ right).float().to(device)
    first: torch.Tensor | None = None
    products, started_s = 0, time.monotonic()
    while time.monotonic() - started_s < _SECONDS:
        product = left_there @ right_there
        first = product if first is None else first
        if not torch.equal(product, first) or not torch.equal(product[:8], expected):
            return Finding(f"{name} arithmetic", "fail", "a product of whole numbers is wrong; have the device tested")
        products += 1
    rate = 2 * _SIZE**3 * products / (time.monotonic() - started_s) / 1e12
    return Finding(f"{name} arithmetic", "ok", f"{products} products without an error, {rate:.2g} TFLOP/s in fp32")


if __name__ == "__main__":
    torch.set_num_threads(min(2, torch.get_num_threads()))
    print(json.dumps([asdict(one) for one in burn(int(sys.argv[1]))]))
