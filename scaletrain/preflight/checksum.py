"""Whether a device calculates the same bits each time, and all devices of a kind the same.

Exact products of whole numbers (``burn.py``) use few bits of each number. These use all of them, on the units on which
a training calculates; what is right is then not known, but that it must always be the same.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from scaletrain.hardware.bounded import announce
from scaletrain.hardware.findings import Finding

_CPU_SIZE, _GPU_SIZE = 1024, 8192
_AT_ONCE = 10  # products between two looks at the clock, for which a GPU has to be waited for
_REMEDY = "have the device tested, and do not train on it"


@dataclass(frozen=True)
class Products:
    """What one device made.

    Attributes:
        name: For people, such as "gpu 3".
        kind: Devices of the same kind must agree.
        checksum: Of the first product.
        count: Products.
        wrong: Products with another checksum than the first.
        tflops: 10^12 operations per second.
    """

    name: str
    kind: str
    checksum: int
    count: int
    wrong: int
    tflops: float


def compare_checksums(gpus: int, seconds: float) -> list[Finding]:
    """Multiplies the same random matrices on each device, one after the other.

    Args:
        gpus: How many GPUs; 0 calculates on the CPU.
        seconds: For how long on each.

    Returns:
        A finding for each device.
    """
    devices = [torch.device("cuda", index) for index in range(gpus)] or [torch.device("cpu")]
    size = _GPU_SIZE if gpus else _CPU_SIZE
    generator = torch.Generator().manual_seed(11)
    left, right = (torch.randn(size, size, generator=generator) for _ in range(2))
    # Sums in half precision would depend on how a library divides the work.
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    made: list[Products] = []
    failed: list[Finding] = []
    for device in devices:
        name = f"gpu {device.index}" if gpus else "cpu"
        announce(f"multiplies on {name} again and again")
        try:
            made.append(_multiply(name, device, left, right, seconds))
        except RuntimeError as error:
            text = f"{str(error).splitlines()[0]}; reset the GPU or reboot the node"
            failed.append(Finding(f"{name} checksum", "fail", text))
    return failed + judge_products(made)


def judge_products(made: Sequence[Products]) -> list[Finding]:
    """Compares checksums run by run, and those of devices of the same kind.

    Source for the second: NVIDIA cuBLAS documentation, Results reproducibility: the same bits on GPUs of the same
    architecture and number of multiprocessors.

    Args:
        made: By each device.

    Returns:
        A finding for each device.
    """
    findings = []
    for one in made:
        votes = Counter(other.checksum for other in made if other.kind == one.kind)
        wrong = _wrong(one, votes)
        detail = (
            f"{wrong}; {_REMEDY}" if wrong else f"{one.count} products with the same bits, {one.tflops:.3g} TFLOP/s"
        )
        findings.append(Finding(f"{one.name} checksum", "fail" if wrong else "ok", detail, {"tflops": one.tflops}))
    return findings


def _wrong(one: Products, votes: Counter[int]) -> str:
    if one.wrong:
        return f"{one.wrong} of {one.count} products have other bits than the first"
    (most, count), *others = votes.most_common()
    if others and others[0][1] == count:
        return "GPUs of the same kind calculate other bits, and it is not known whose are right"
    return f"other bits than {count} GPUs of the same kind" if one.checksum != most else ""


def _multiply(name: str, device: torch.device, left: torch.Tensor, right: torch.Tensor, seconds: float) -> Products:
    kind, dtype = "cpu", torch.bfloat16
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        kind = f"{properties.name} with {properties.multi_processor_count} multiprocessors"
        dtype = torch.bfloat16 if properties.major >= 8 else torch.float16  # before Ampere there is no bf16
    left, right = left.to(device, dtype), right.to(device, dtype)
    product = torch.empty(left.shape, dtype=dtype, device=device)
    first = _checksum(torch.matmul(left, right, out=product))
    wrong = torch.zeros((), dtype=torch.int64, device=device)
    count, _ = 1, first.item()  # waits: what comes first takes longer
    started_s = time.monotonic()
    while count == 1 or time.monotonic() - started_s < seconds:
        for _ in range(_AT_ONCE):
            wrong += _checksum(torch.matmul(left, right, out=product)) != first
        count += _AT_ONCE
        number = int(wrong.item())
    taken_s = time.monotonic() - started_s
    rate = 2 * left.shape[0] ** 3 * (count - 1) / taken_s / 1e12
    return Products(name, kind, int(first.item()), count, number, rate)


def _checksum(product: torch.Tensor) -> torch.Tensor:
    """The sum of the bits as whole numbers: exact, in whatever order it is made."""
    return product.view(torch.int16).sum(dtype=torch.int64)
