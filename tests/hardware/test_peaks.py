"""Peak rates are found by the names that drivers report."""

import pytest

from scaletrain.hardware.peaks import Precision, pcie_bytes_per_s, peak_flops_per_s, peak_memory_bytes_per_s


@pytest.mark.parametrize(
    ("name", "precision", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", 312.0),
        ("NVIDIA A100 80GB PCIe", "fp16", 312.0),
        ("NVIDIA A100-PCIE-40GB", "fp32", 19.5),
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4),
        ("NVIDIA H100 PCIe", "bf16", 756.0),
        ("NVIDIA H100 NVL", "bf16", 835.5),
        ("NVIDIA H200", "bf16", 989.4),
        ("NVIDIA GH200 480GB", "bf16", 989.4),
        ("NVIDIA B200", "bf16", 2250.0),
        ("Tesla V100-SXM2-32GB", "fp16", 125.0),
        ("Tesla V100-PCIE-16GB", "fp16", 112.0),
        ("NVIDIA A10G", "bf16", 70.0),
        ("NVIDIA A10", "bf16", 125.0),
        ("NVIDIA L4", "bf16", 121.0),
        ("NVIDIA L40S", "bf16", 362.05),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2),
        ("NVIDIA RTX 6000 Ada Generation", "fp32", 91.1),
        ("NVIDIA RTX A6000", "bf16", 154.8),
    ],
)
def test_known_gpus(name: str, precision: Precision, tflops: float) -> None:
    assert peak_flops_per_s(name, precision) == tflops * 1e12


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("Tesla V100-SXM2-32GB", "bf16"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16"),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16"),
        ("AMD EPYC 7B13", "bf16"),
        ("cpu", "fp32"),
        ("", "fp32"),
    ],
)
def test_what_is_not_known_is_not_guessed(name: str, precision: Precision) -> None:
    assert peak_flops_per_s(name, precision) is None


@pytest.mark.parametrize(
    ("name", "gb_per_s"),
    [
        ("NVIDIA H100 80GB HBM3", 3350),
        ("NVIDIA H100 PCIe", 2000),
        ("NVIDIA H200", 4800),
        ("NVIDIA A100-SXM4-80GB", 2039),
        ("NVIDIA A100 80GB PCIe", 1935),
        ("NVIDIA A100-PCIE-40GB", 1555),
        ("NVIDIA L4", 300),
        ("NVIDIA L40S", 864),
    ],
)
def test_memory_of_known_gpus(name: str, gb_per_s: float) -> None:
    assert peak_memory_bytes_per_s(name) == gb_per_s * 1e9


@pytest.mark.parametrize(
    "name", ["cpu", "", "NVIDIA Fake 80GB", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA GeForce RTX 4090 Laptop GPU"]
)
def test_memory_that_is_not_known_is_not_guessed(name: str) -> None:
    assert peak_memory_bytes_per_s(name) is None


def test_pcie() -> None:
    """The figures by which slots are sold: 15.8, 31.5 and 63 GB/s for 16 lanes of the third to fifth generation."""
    rates = [pcie_bytes_per_s(generation, 16) for generation in (3, 4, 5)]
    assert rates == pytest.approx([15.754e9, 31.508e9, 63.015e9], rel=1e-4)
    assert pcie_bytes_per_s(1, 4) == pytest.approx(1e9)
    assert pcie_bytes_per_s(9, 16) is None
