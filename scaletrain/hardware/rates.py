"""Whether devices move data and calculate as fast as their makers say, and as fast as those beside them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median

from scaletrain.hardware.findings import Finding
from scaletrain.hardware.peaks import pcie_bytes_per_s, peak_memory_bytes_per_s
from scaletrain.hardware.readings import GpuReading
from scaletrain.hardware.visible import local_index

_OF_MEMORY = 0.7
"""Share of the datasheet's figure below which a copy is slow; chosen."""
_OF_PCIE = 0.6
"""Share of what the lanes can carry below which a copy from or to pinned memory is slow; chosen."""
_OF_PEERS = 0.8
"""Share of the median of the node's GPUs of the same kind below which one is slow; chosen."""
_FEWEST_PEERS = 3
_COMPARED = ("tflops", "memory_gb_per_s", "to_device_gb_per_s", "from_device_gb_per_s")
_REMEDY = "look at clocks, heat and other load, and at the slot"


def judge_rates(findings: Sequence[Finding], gpus: Sequence[GpuReading], environ: Mapping[str, str]) -> list[Finding]:
    """Warns of rates that are too low; where nothing is known to compare them with they stay as they are.

    Args:
        findings: With figures, of checks whose names begin with "gpu" and torch's number of it.
        gpus: What the driver tells of the GPUs.
        environ: Says in which order torch numbers them.

    Returns:
        The findings, some of them now ``warn``.
    """
    by_number = {local_index(gpu.index, gpu.uuid, environ): gpu for gpu in gpus}
    judged = []
    for finding in findings:
        gpu = by_number.get(_number(finding))
        slow = (
            [] if gpu is None else [*_against_maker(finding, gpu), *_against_peers(finding, gpu, findings, by_number)]
        )
        if slow and finding.status == "ok":
            finding = replace(finding, status="warn", detail=f"{finding.detail}; {'; '.join(slow)}; {_REMEDY}")
        judged.append(finding)
    return judged


def numbered_by_driver(
    findings: Sequence[Finding], gpus: Sequence[GpuReading], environ: Mapping[str, str]
) -> list[Finding]:
    """Names GPUs by the driver's numbers, as rules and topology do, where a process of torch's named them by its own.

    Args:
        findings: With "gpu" and torch's number in names and details.
        gpus: What the driver tells of the GPUs.
        environ: Says in which order torch numbers them.

    Returns:
        The findings; a number that the driver knows nothing of stays.
    """
    by_number = {local_index(gpu.index, gpu.uuid, environ): gpu.index for gpu in gpus}

    def renamed(text: str) -> str:
        return re.sub(r"\bgpu (\d+)\b", lambda found: f"gpu {by_number.get(int(found[1]), found[1])}", text)

    return [replace(one, check=renamed(one.check), detail=renamed(one.detail)) for one in findings]


def judge_all_reduce(findings: Sequence[Finding], least_gb_per_s: float) -> list[Finding]:
    """Fails an all-reduce that is slower than the user expects.

    Args:
        findings: That of the all-reduce among them, with its bus bandwidth.
        least_gb_per_s: What is expected; 0 for nothing.

    Returns:
        The findings.
    """
    judged = []
    for finding in findings:
        rate = finding.figures.get("all_reduce_gb_per_s")
        if rate is not None and rate < least_gb_per_s and finding.status == "ok":
            text = f"{finding.detail}; {least_gb_per_s:g} GB/s are expected; look at NVLinks and switches"
            finding = replace(finding, status="fail", detail=text)
        judged.append(finding)
    return judged


def _number(finding: Finding) -> int | None:
    found = re.match(r"gpu (\d+) ", finding.check)
    return int(found[1]) if found else None


def _against_maker(finding: Finding, gpu: GpuReading) -> list[str]:
    lanes = (
        pcie_bytes_per_s(gpu.max_pcie_generation, gpu.max_pcie_width)
        if gpu.max_pcie_generation and gpu.max_pcie_width
        else None
    )
    known = {
        "memory_gb_per_s": (peak_memory_bytes_per_s(gpu.name or ""), _OF_MEMORY, "of the datasheet"),
        "to_device_gb_per_s": (lanes, _OF_PCIE, "of its PCIe lanes"),
        "from_device_gb_per_s": (lanes, _OF_PCIE, "of its PCIe lanes"),
    }
    slow = []
    for name, (peak, share, whose) in known.items():
        rate = finding.figures.get(name)
        if rate is not None and peak is not None and rate * 1e9 < share * peak:
            slow.append(f"{name} is {rate:.3g}, less than {share:.0%} of the {peak / 1e9:.4g} {whose}")
    return slow


def _against_peers(
    finding: Finding, gpu: GpuReading, findings: Sequence[Finding], by_number: Mapping[int | None, GpuReading]
) -> list[str]:
    slow = []
    for name in _COMPARED:
        rate = finding.figures.get(name)
        peers = [
            other.figures[name]
            for other in findings
            if name in other.figures and (beside := by_number.get(_number(other))) and beside.name == gpu.name
        ]
        if rate is not None and len(peers) >= _FEWEST_PEERS and rate < _OF_PEERS * median(peers):
            slow.append(f"{name} is {rate:.3g}, less than {_OF_PEERS:.0%} of the {median(peers):.3g} of most GPUs here")
    return slow
