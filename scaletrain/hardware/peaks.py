"""Highest rates of GPUs: of arithmetic, which model FLOP utilization is a share of, and of moving data."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Precision = Literal["fp32", "bf16", "fp16"]

_TERA, _GIGA = 1e12, 1e9


@dataclass(frozen=True)
class _Peak:
    """Dense rates in TFLOP/s of the GPUs whose name contains all of ``words``.

    fp32 is the rate without TF32, which torch leaves off; bf16 and fp16 are those of the tensor cores, accumulating
    in fp32. A rate of None: the GPU has no such arithmetic in hardware.
    """

    words: frozenset[str]
    fp32: float
    bf16: float | None
    fp16: float | None


def _peak(words: str, fp32: float, bf16: float | None, fp16: float | None = None) -> _Peak:
    """A row of the table; where only bf16 is given, fp16 has the same rate."""
    return _Peak(frozenset(words.split()), fp32, bf16, bf16 if fp16 is None else fp16)


# Where names overlap the longer one stands first.
# Source: NVIDIA's datasheets of the products named, and for GeForce and RTX cards the whitepapers of their
# architectures; AWS's datasheet for A10G; AMD's for MI300X. Figures given there with sparsity are halved.
_PEAKS: tuple[_Peak, ...] = (
    _peak("GB300", fp32=80.0, bf16=2500.0),
    _peak("B300", fp32=75.0, bf16=2250.0),
    _peak("GB200", fp32=80.0, bf16=2500.0),
    _peak("B200", fp32=75.0, bf16=2250.0),
    _peak("GH200", fp32=67.0, bf16=989.4),
    _peak("H200 NVL", fp32=60.0, bf16=835.5),
    _peak("H200", fp32=67.0, bf16=989.4),
    _peak("H100 NVL", fp32=60.0, bf16=835.5),
    _peak("H100 PCIE", fp32=51.0, bf16=756.0),
    _peak("H100", fp32=67.0, bf16=989.4),
    _peak("H800 PCIE", fp32=51.0, bf16=756.0),
    _peak("H800", fp32=67.0, bf16=989.4),
    _peak("H20", fp32=44.0, bf16=148.0),
    _peak("A100", fp32=19.5, bf16=312.0),
    _peak("A800", fp32=19.5, bf16=312.0),
    _peak("A30", fp32=10.3, bf16=165.0),
    _peak("A40", fp32=37.4, bf16=149.7),
    _peak("A10", fp32=31.2, bf16=125.0),
    _peak("A10G", fp32=35.0, bf16=70.0),
    _peak("L40S", fp32=91.6, bf16=362.05),
    _peak("L40", fp32=90.5, bf16=181.05),
    _peak("L4", fp32=30.3, bf16=121.0),
    _peak("V100S PCIE", fp32=16.4, bf16=None, fp16=130.0),
    _peak("V100 PCIE", fp32=14.0, bf16=None, fp16=112.0),
    _peak("V100", fp32=15.7, bf16=None, fp16=125.0),
    _peak("T4", fp32=8.1, bf16=None, fp16=65.0),
    _peak("RTX 5090", fp32=104.8, bf16=209.5),
    _peak("RTX 4090", fp32=82.6, bf16=165.2),
    _peak("RTX 4080", fp32=48.7, bf16=97.5),
    _peak("RTX 3090", fp32=35.6, bf16=71.0),
    _peak("RTX 6000 ADA", fp32=91.1, bf16=364.2),
    _peak("RTX A6000", fp32=38.7, bf16=154.8),
    _peak("MI300X", fp32=163.4, bf16=1307.4),
)
# The words of a name that mark a slower relative of the GPU named, of which nothing is known here.
_OTHER_PRODUCTS = frozenset({"LAPTOP", "MOBILE", "MIG", "D", "SUPER", "TI", "MAX", "Q"})


def peak_flops_per_s(device_name: str, precision: Precision) -> float | None:
    """Looks up the highest dense rate of a GPU.

    Args:
        device_name: The vendor's name as NVML and torch give it, such as "NVIDIA A100-SXM4-80GB".
        precision: Arithmetic of the matrix products.

    Returns:
        FLOP/s of one GPU. None for a device that is not in the table, such as a CPU, and for bf16 on a GPU without
        it: the rate has to be measured there.
    """
    words = _words(device_name)
    if words & _OTHER_PRODUCTS:
        return None
    for peak in _PEAKS:
        if peak.words <= words:
            rate: float | None = getattr(peak, precision)
            return None if rate is None else rate * _TERA
    return None


def _words(device_name: str) -> frozenset[str]:
    return frozenset(re.split(r"[^A-Z0-9]+", device_name.upper()))


# Bytes per second of the device memory, in GB/s; where names overlap the longer one stands first.
# Source: as above. Where a maker gives two figures for a product the lower one stands here.
_MEMORY_GB_PER_S: tuple[tuple[frozenset[str], float], ...] = tuple(
    (frozenset(words.split()), rate)
    for words, rate in (
        ("GB300", 8000.0),
        ("B300", 8000.0),
        ("GB200", 8000.0),
        ("B200", 7700.0),
        ("GH200", 4000.0),
        ("H200", 4800.0),
        ("H100 NVL", 3900.0),
        ("H100 PCIE", 2000.0),
        ("H100", 3350.0),
        ("H20", 4000.0),
        ("A100 PCIE 80GB", 1935.0),
        ("A100 80GB", 2039.0),
        ("A100", 1555.0),
        ("A30", 933.0),
        ("A40", 696.0),
        ("A10", 600.0),
        ("A10G", 600.0),
        ("L40S", 864.0),
        ("L40", 864.0),
        ("L4", 300.0),
        ("V100S PCIE", 1134.0),
        ("V100", 900.0),
        ("T4", 320.0),
        ("RTX 5090", 1792.0),
        ("RTX 4090", 1008.0),
        ("RTX 3090", 936.0),
        ("RTX 6000 ADA", 960.0),
        ("RTX A6000", 768.0),
        ("MI300X", 5300.0),
    )
)
# Transfers of a lane in 10^9 per second, and the share of the bits that is data, by generation.
# Source: PCI-SIG, PCI Express Base Specification: 8b/10b, from the third on 128b/130b, in the sixth 242 bytes of 256.
_PCIE: Mapping[int, tuple[float, float]] = MappingProxyType(
    {
        1: (2.5, 8 / 10),
        2: (5.0, 8 / 10),
        3: (8.0, 128 / 130),
        4: (16.0, 128 / 130),
        5: (32.0, 128 / 130),
        6: (64.0, 242 / 256),
    }
)


def peak_memory_bytes_per_s(device_name: str) -> float | None:
    """Looks up how fast a GPU's memory is.

    Args:
        device_name: As for ``peak_flops_per_s``.

    Returns:
        Bytes per second, read and written together; None for a device that is not in the table.
    """
    words = _words(device_name)
    if words & _OTHER_PRODUCTS:
        return None
    return next((rate * _GIGA for known, rate in _MEMORY_GB_PER_S if known <= words), None)


def pcie_bytes_per_s(generation: int, lanes: int) -> float | None:
    """What a PCIe link carries in one direction, packets' heads included.

    Args:
        generation: 1 to 6.
        lanes: Its width.

    Returns:
        Bytes per second; None for a generation that is not known.
    """
    if generation not in _PCIE:
        return None
    transfers, share = _PCIE[generation]
    return transfers * share * lanes / 8 * _GIGA
