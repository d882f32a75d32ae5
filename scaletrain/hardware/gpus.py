"""What NVIDIA's driver says of the health of a node's GPUs, by the rules by which a running job judges its own."""

import time
from collections.abc import Mapping

from scaletrain.hardware.findings import Finding, Status
from scaletrain.hardware.judging import HealthFinding, Judge
from scaletrain.hardware.prober import Prober
from scaletrain.hardware.readings import GpuReading, Reading
from scaletrain.hardware.rules import Rule, Severity
from scaletrain.hardware.signals import SIGNALS
from scaletrain.hardware.visible import only_visible

SETTLE_S = 60.0  # longest: a rule may want to see a fault several times, or for a while
_ANSWER_S = 15.0  # as long as Prober calls plenty for a sound driver
_PAUSE_S = 1.0
STATUS_OF: Mapping[Severity, Status] = {"info": "ok", "warn": "warn", "drain": "fail", "abort": "fail"}
# What every GPU of a data center tells; where it does not, the check is blind.
_EXPECTED_SIGNALS = ("ecc_uncorrected", "row_remap_pending")


def check_gpus(
    prober: Prober,
    rules: Mapping[str, Rule],
    environ: Mapping[str, str],
    expected: int | None,
    until_s: float,
    settle_s: float = SETTLE_S,
) -> tuple[list[Finding], Reading]:
    """Asks each GPU of the job, again while a rule is about to be broken.

    Args:
        prober: Asks the driver.
        rules: By which they are judged.
        environ: Says which GPUs the job may use.
        expected: GPUs that the job counts on; None where nobody counts on a number.
        until_s: When it has to be over, in the seconds of ``time.monotonic``.
        settle_s: How long GPUs that answer are asked again; a driver that does not is asked until the end.

    Returns:
        The findings, and what was read last. What a device does not support is unknown.
    """
    judge = Judge(rules, "start", expected)
    settled_s = time.monotonic() + settle_s
    while True:
        whole = prober.read(max(0.1, min(_ANSWER_S, until_s - time.monotonic())))
        reading = only_visible(whole, environ)
        if reading.driver == "absent":
            return [Finding("nvml", "unknown", f"not available: {reading.detail}")], reading
        now_s = time.monotonic()
        judge.judge(reading, now_s)
        is_decided = not judge.undecided and reading.driver != "unasked"
        if is_decided or now_s + _PAUSE_S > (settled_s if reading.driver == "ok" else until_s):
            break
        time.sleep(_PAUSE_S)
    found = judge.active
    findings = [_finding(one) for one in found]
    if reading.driver != "ok":
        return [*findings, *([] if is_driver_broken(findings) else [_unanswered(reading)])], reading
    if not any(one.gpu_index is None for one in found):
        findings.insert(0, Finding("gpus", "ok", _count(len(reading.gpus), expected, len(whole.gpus))))
    undecided = [(rules[name], index) for name, index in judge.undecided]
    for rule, index in undecided:
        words = f"{rule.title}, but not long or often enough to be sure (rule {rule.name}: {rule.condition()})"
        findings.append(Finding(_check(rule.name, index), "warn", f"{words}; {rule.remedy}"))
    for gpu in reading.gpus:
        broken = [*(one.gpu_index for one in found), *(index for _, index in undecided)]
        if gpu.index not in broken:
            findings.append(Finding(f"gpu {gpu.index}", "ok", f"{gpu.name}: no rule is broken"))
        findings += _untold(gpu, reading)
    return findings, reading


def is_driver_broken(findings: list[Finding]) -> bool:
    """Whether the driver cannot be asked for more, by what ``check_gpus`` found."""
    return any(one.check in ("nvml", "driver_silent", "driver_failing") and one.status == "fail" for one in findings)


def _count(found: int, expected: int | None, listed: int) -> str:
    left_out = f"; {listed - found} more are not in CUDA_VISIBLE_DEVICES, and were not looked at"
    others = left_out if listed > found else ""
    if expected is None:
        return f"{found}{others}"
    return (f"{found}, at least {expected} wanted" if found > expected else f"{found} of {expected}") + others


def _check(rule: str, index: int | None) -> str:
    return rule if index is None else f"gpu {index} {rule}"


def _finding(found: HealthFinding) -> Finding:
    return Finding(_check(found.rule, found.gpu_index), STATUS_OF[found.severity], found.text)


def _unanswered(reading: Reading) -> Finding:
    """Of a driver that the time was too short for, before any rule was broken."""
    if reading.driver == "unasked":
        return Finding("nvml", "unknown", f"{reading.detail}; the machine may be overloaded")
    return Finding("nvml", "fail", f"{reading.detail}; reboot the node")


def _untold(gpu: GpuReading, reading: Reading) -> list[Finding]:
    reads = {name: SIGNALS[name].of_gpu for name in _EXPECTED_SIGNALS}
    names = [name for name, of_gpu in reads.items() if of_gpu and of_gpu(gpu, reading) is None]
    if gpu.state != "ok" or not names:
        return []
    why = "not supported by this GPU or driver, or not allowed"
    return [Finding(f"gpu {gpu.index} not told", "unknown", f"{', '.join(names)}: {why}")]
