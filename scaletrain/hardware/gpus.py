"""What NVIDIA's driver says of the health of a node's GPUs, before a job begins.

``python -m scaletrain.hardware.gpus COUNT [RULES]`` prints the findings as JSON: a process of its own, since a call
into a sick driver may never return. The rules are those by which a running job judges its GPUs.
"""

import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from scaletrain.errors import ConfigError
from scaletrain.hardware.bounded import announce
from scaletrain.hardware.findings import Finding, Status
from scaletrain.hardware.judging import HealthFinding, Judge
from scaletrain.hardware.nvml import NvmlReader
from scaletrain.hardware.readings import GpuReading, Reading
from scaletrain.hardware.rules import Rule, Severity, load_rules
from scaletrain.hardware.signals import SIGNALS
from scaletrain.hardware.visible import only_visible

SETTLE_S = 60.0  # longest: a rule may want to see a fault several times, or for a while
_PAUSE_S = 1.0
_STATUS: Mapping[Severity, Status] = {"info": "ok", "warn": "warn", "drain": "fail", "abort": "fail"}
# What every GPU of a data center tells; where it does not, the check is blind.
_EXPECTED_SIGNALS = ("ecc_uncorrected", "row_remap_pending")


def check_gpus(expected: int, rules: Mapping[str, Rule], environ: Mapping[str, str]) -> list[Finding]:
    """Asks each GPU of the job, again while a rule is about to be broken.

    Args:
        expected: GPUs that the job counts on.
        rules: By which they are judged.
        environ: Says which GPUs the job may use.

    Returns:
        The findings; what a device does not support is unknown.
    """
    reader = NvmlReader(lambda doing, gpu: announce(f"asks for {doing}" + ("" if gpu is None else f" of GPU {gpu}")))
    judge = Judge(rules, "start", expected)
    deadline_s = time.monotonic() + SETTLE_S
    while True:
        reading = only_visible(reader.read(), environ)
        if reading.driver == "absent":
            return [Finding("nvml", "unknown", f"not available: {reading.detail}")]
        judge.judge(reading, time.monotonic())
        if not judge.is_undecided or time.monotonic() > deadline_s:
            break
        time.sleep(_PAUSE_S)
    reader.close()
    found = judge.active
    findings = [_finding(one) for one in found]
    if not any(one.gpu_index is None for one in found):
        findings.insert(0, Finding("gpus", "ok", f"{len(reading.gpus)} of {expected}"))
    for gpu in reading.gpus:
        if not any(one.gpu_index == gpu.index for one in found):
            findings.append(Finding(f"gpu {gpu.index}", "ok", f"{gpu.name}: no rule is broken"))
        findings += _untold(gpu, reading)
    return findings


def _finding(found: HealthFinding) -> Finding:
    check = found.rule if found.gpu_index is None else f"gpu {found.gpu_index} {found.rule}"
    return Finding(check, _STATUS[found.severity], found.text)


def _untold(gpu: GpuReading, reading: Reading) -> list[Finding]:
    reads = {name: SIGNALS[name].of_gpu for name in _EXPECTED_SIGNALS}
    names = [name for name, of_gpu in reads.items() if of_gpu and of_gpu(gpu, reading) is None]
    if gpu.state != "ok" or not names:
        return []
    why = "not supported by this GPU or driver, or not allowed"
    return [Finding(f"gpu {gpu.index} not told", "unknown", f"{', '.join(names)}: {why}")]


if __name__ == "__main__":
    try:
        in_force = load_rules(Path(sys.argv[2]) if len(sys.argv) > 2 else None)
        told = check_gpus(int(sys.argv[1]), in_force, os.environ)
    except ConfigError as error:
        told = [Finding("health rules", "fail", str(error))]
    print(json.dumps([asdict(finding) for finding in told]))
