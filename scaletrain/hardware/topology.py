"""How a node's GPUs are connected, and by which versions they are driven, as the driver and the kernel tell it."""

from pathlib import Path

from scaletrain.hardware.findings import Finding, Status
from scaletrain.hardware.kernel_files import read_number
from scaletrain.hardware.readings import GpuReading, Reading

_TRAINED_S = 300.0
"""Since boot: NVLinks are being trained before, as in health_rules.yaml."""


def check_versions(reading: Reading, driver: str, cuda: str) -> Finding:
    """Compares the versions of the driver and of the CUDA that it supports.

    Args:
        reading: Of a driver that answers.
        driver: The version wanted, or how it begins, by whole numbers ("570.124"); empty for any.
        cuda: The same for CUDA.

    Returns:
        One finding.
    """
    told = f"{reading.version or 'not told'}, CUDA {reading.cuda_version or 'not told'}"
    wrong = [
        f"{name} {wanted}"
        for name, found, wanted in (("driver", reading.version, driver), ("CUDA", reading.cuda_version, cuda))
        if wanted and not _begins_with(found or "", wanted)
    ]
    if wrong:
        return Finding("driver", "fail", f"{told}; expected: {', '.join(wrong)}; install that, or expect another one")
    return Finding("driver", "ok", told)


def check_topology(reading: Reading, nvlinks: int | None, sys: Path = Path("/sys")) -> list[Finding]:
    """Tells PCIe, NVLinks and the NUMA node of each GPU.

    What a GPU has lost against its slot or its neighbour the rules judge; here only the number of links is compared
    that a user expects, which shows it where all GPUs have lost the same.

    Args:
        reading: Of a driver that answers.
        nvlinks: Links that should be up on each GPU; None for any number.
        sys: Where the kernel tells of devices.

    Returns:
        A finding for each GPU that answers.
    """
    return [_topology(gpu, reading, nvlinks, sys) for gpu in reading.gpus if gpu.state == "ok"]


def _begins_with(version: str, wanted: str) -> bool:
    parts = wanted.split(".")
    return version.split(".")[: len(parts)] == parts


def _topology(gpu: GpuReading, reading: Reading, nvlinks: int | None, sys: Path) -> Finding:
    up = sum(link.is_active is True for link in gpu.links)
    numa = read_number(sys / "bus/pci/devices" / gpu.bus_id / "numa_node") if gpu.bus_id else None
    words = [
        f"PCIe generation {_known(gpu.pcie_generation)} of {_known(gpu.max_pcie_generation)}",
        f"{_known(gpu.pcie_width)} of {_known(gpu.max_pcie_width)} lanes",
        f"{up} of {len(gpu.links)} NVLinks are up" if gpu.links else "no NVLinks",
        "NUMA node not told" if numa is None or numa < 0 else f"NUMA node {numa}",
    ]
    told = {
        "pcie_generation": gpu.pcie_generation,
        "pcie_lanes": gpu.pcie_width,
        "nvlinks_up": up,
        "nvlinks_down": len(gpu.links) - up,
        "numa_node": None if numa is None or numa < 0 else numa,
    }
    status: Status = "ok"
    if nvlinks is not None and up != nvlinks:
        is_trained = (reading.uptime_s or 0.0) >= _TRAINED_S
        status = "fail" if is_trained else "warn"
        words.append(f"{nvlinks} links are expected; reset the GPUs of the node together")
        if not is_trained:
            words.append("the machine was booted just now, and they may be in training")
    figures = {name: float(value) for name, value in told.items() if value is not None}
    return Finding(f"gpu {gpu.index} topology", status, "; ".join(words), figures)


def _known(number: int | None) -> str:
    return "?" if number is None else str(number)
