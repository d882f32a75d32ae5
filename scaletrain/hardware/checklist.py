"""What is looked at on a node: before a job by its launcher, and at any time by ``tools/check_node.py``."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from scaletrain.errors import ConfigError
from scaletrain.hardware.bounded import BoundedCheck
from scaletrain.hardware.expectation import Expectation
from scaletrain.hardware.findings import Finding, Status
from scaletrain.hardware.gpus import SETTLE_S, check_gpus, is_driver_broken
from scaletrain.hardware.host import free_memory
from scaletrain.hardware.prober import Prober
from scaletrain.hardware.rates import judge_all_reduce, judge_rates, numbered_by_driver
from scaletrain.hardware.readings import Reading
from scaletrain.hardware.rules import Rule, load_rules
from scaletrain.hardware.topology import check_topology, check_versions

_GIB = 2**30
_START_S = 5.0  # of a process, on a busy node
_FOLDERS_S = 15.0
_DRIVER_S = 90.0  # the first answer, and while a fault may pass
_QUICK_SETTLE_S = 5.0
_NAMES_S = 10.0
_HOST_S = 15.0  # as for folders; rules of hosts are decided before
_BURN_S = 120.0  # the import of torch from a slow disk, and some seconds for each of 8 GPUs
_CHECKSUM_S = 2.0
_BANDWIDTH_S = 90.0
_ALL_REDUCE_S = 90.0
_LEAST_S = 1.0
_CPU_RANKS = 2  # processes of an all-reduce on a machine without GPUs
_OF_RANKS = 0.8
"""Share of an all-reduce's limit that its ranks get, so that it can tell which of them are late, and clear away."""


def check_for_job(expected: Expectation) -> list[Finding]:
    """Looks at all that a training needs of this node.

    What can hang runs beside the rest, in processes with a limit, so that all takes no longer than the longest of them;
    but the GPUs calculate only after the driver was asked, which would else take this for another job's leftovers.

    Args:
        expected: What the job wants.

    Returns:
        A finding for each check.
    """
    if _is_cpu_asked_for():
        expected = replace(expected, gpus=0)  # the launcher tells what was allocated, which need not be used
    beside = _of_host(expected, float("inf"), "fail")
    rules, unread = _rules_of(expected)
    findings, _ = _of_gpus(expected, rules, time.monotonic() + _DRIVER_S, SETTLE_S)
    if is_driver_broken(findings):
        findings.append(Finding("arithmetic", "unknown", "left out: the driver does not answer"))
    else:
        burn = ["scaletrain.preflight.burn", str(expected.gpus or 0)]
        beside.append(BoundedCheck("arithmetic", burn, expected.limit_s, "reboot the node"))
    return [_check_memory(expected.min_memory_gib), *unread, *findings, *_all_of(beside)]


def _rules_of(expected: Expectation) -> tuple[Mapping[str, Rule], list[Finding]]:
    """The rules for a job; with a mistake in the user's file, which is no fault of the node, those that ship."""
    try:
        return load_rules(Path(expected.rules) if expected.rules else None), []
    except ConfigError as error:
        return load_rules(), [Finding("rules", "warn", f"judged by the rules that ship. {error}")]


def check_whole_node(
    expected: Expectation, rules: Mapping[str, Rule], rules_file: Path | None, is_quick: bool, limit_s: float
) -> list[Finding]:
    """Looks at all that this node tells of itself, and has its devices calculate and move data.

    Args:
        expected: What the user wants; it counts for more than DS_ACCELERATOR.
        rules: Of GPUs.
        rules_file: The user's changes to the rules, for those of the host.
        is_quick: Leaves out what needs torch, and waits no longer than a few seconds for faults that may pass.
        limit_s: Longest time in seconds; what is not begun by then is unknown. A process that the kernel cannot end is
            waited for a few seconds more.

    Returns:
        A finding for each check.
    """
    until_s = time.monotonic() + limit_s
    if _is_cpu_asked_for() and expected.gpus is None and not _of_driver(expected):
        expected = replace(expected, gpus=0)
    # A node that is too busy to start a process in time is not sick: what is not begun is unknown.
    beside = _of_host(expected, until_s, "unknown")
    host = [
        "scaletrain.hardware.host_check",
        str(min(_HOST_S, limit_s / 2)),
        *([str(rules_file)] if rules_file else []),
    ]
    host_s = min(_HOST_S + _START_S, limit_s)
    beside.append(BoundedCheck("host", host, host_s, "look for a file server that is gone", "unknown"))
    settle_s = _QUICK_SETTLE_S if is_quick else SETTLE_S
    findings, reading = _of_gpus(expected, rules, until_s, settle_s)
    if reading.driver == "ok":
        findings.append(check_versions(reading, expected.driver, expected.cuda))
        findings += check_topology(reading, expected.nvlinks)
    elif reading.driver == "absent":
        findings = [_without_driver(expected, reading, is_quick)]
    findings = [_check_memory(expected.min_memory_gib), *findings, *_all_of(beside)]
    if is_quick:
        pass
    elif is_driver_broken(findings):
        findings.append(Finding("arithmetic", "unknown", "left out: the driver does not answer"))
    else:
        findings += _of_devices(expected, reading, until_s)
    return findings + _not_looked_at(expected, reading, findings)


def _of_host(expected: Expectation, until_s: float, silent: Status) -> list[BoundedCheck]:
    """Starts what is looked at beside the GPUs, and may hang; ``silent`` as for ``BoundedCheck``."""
    left_s = until_s - time.monotonic()
    folders = ["scaletrain.hardware.folders", expected.shared_dir, expected.token, str(expected.min_free_gib)]
    names_s = min(_NAMES_S, left_s / 2)
    names = ["scaletrain.hardware.names", json.dumps(dict(expected.addresses)), str(names_s)]
    return [
        BoundedCheck("folders", folders, min(_FOLDERS_S, left_s), "look for a file server that is gone", silent),
        BoundedCheck("names", names, min(names_s + _START_S, left_s), "look at the node's resolver", silent),
    ]


def _all_of(checks: Sequence[BoundedCheck]) -> list[Finding]:
    return [finding for check in checks for finding in check.findings()]


def _of_gpus(
    expected: Expectation, rules: Mapping[str, Rule], until_s: float, settle_s: float
) -> tuple[list[Finding], Reading]:
    if expected.gpus == 0:
        why = "DS_ACCELERATOR=cpu" if _is_cpu_asked_for() else "none are expected"
        return [Finding("gpus", "ok", f"left out: {why}")], Reading("unasked")
    prober = Prober()
    try:
        return check_gpus(prober, rules, os.environ, expected.gpus, until_s, settle_s)
    finally:
        prober.close()


def _is_cpu_asked_for() -> bool:
    return os.environ.get("DS_ACCELERATOR") == "cpu"


def _of_driver(expected: Expectation) -> dict[str, str | int]:
    """What is expected that only NVIDIA's driver can tell."""
    wanted = {"driver": expected.driver, "cuda": expected.cuda, "nvlinks": expected.nvlinks}
    return {name: value for name, value in wanted.items() if value}


def _not_looked_at(expected: Expectation, reading: Reading, findings: Sequence[Finding]) -> list[Finding]:
    """What is expected, and nothing else was said about."""
    wanted: dict[str, str | int | float] = {} if reading.driver == "ok" else {**_of_driver(expected)}
    if expected.all_reduce_gb_per_s and not any(one.check == "all-reduce" for one in findings):
        wanted["all_reduce_gb_per_s"] = expected.all_reduce_gb_per_s
    if not wanted:
        return []
    words = ", ".join(f"{name}={value}" for name, value in wanted.items())
    return [Finding("expected", "unknown", f"not looked at: {words}; see what was left out, or do not expect it")]


def _without_driver(expected: Expectation, reading: Reading, is_quick: bool) -> Finding:
    """Says once that there is no driver; torch, where it is asked, may know GPUs of another kind."""
    why = f"no driver of NVIDIA's here ({reading.detail})"
    if not expected.gpus and not _of_driver(expected):
        return Finding("gpus", "ok", f"none: {why}")
    if is_quick or not expected.gpus:
        return Finding("nvml", "fail", f"{why}; install it, or expect no GPUs (gpus=0)")
    return Finding("nvml", "unknown", f"not available: {why}")


def _of_devices(expected: Expectation, reading: Reading, until_s: float) -> list[Finding]:
    """Has the devices calculate and move data, one process after the other; after a failure nothing more of it."""
    count = expected.gpus
    if count is None and reading.driver not in ("ok", "absent"):
        return [Finding("arithmetic", "unknown", "left out: it is not known which GPUs there are")]
    if count is None and any(gpu.is_mig_enabled for gpu in reading.gpus):
        return [Finding("arithmetic", "unknown", "left out: GPUs are cut into instances; say how many torch sees")]
    gpus = len(reading.gpus) if count is None else count
    found: list[Finding] = []
    for check, command, limit_s in (
        ("arithmetic", ["burn", str(gpus), str(_CHECKSUM_S)], _BURN_S),
        ("bandwidth", ["bandwidth", str(gpus)], _BANDWIDTH_S),
        ("all-reduce", ["node_all_reduce", str(gpus or _CPU_RANKS), str(int(gpus > 0))], _ALL_REDUCE_S),
    ):
        if check == "all-reduce" and gpus == 1:
            continue
        left_s = until_s - time.monotonic()
        is_whole = limit_s <= left_s  # else torch may be what it had no time to import
        remedy = "reboot the node" if is_whole else "give more time by --limit_s, or reboot the node"
        limit_s = min(limit_s, left_s)
        if check == "all-reduce":
            command.append(str(_OF_RANKS * limit_s))
        if any(one.status == "fail" for one in found):
            found.append(Finding(check, "unknown", "left out, as a check before it failed"))
        elif limit_s < _LEAST_S:
            found.append(Finding(check, "unknown", "left out: no time is left; give more by --limit_s"))
        else:
            command[0] = f"scaletrain.preflight.{command[0]}"
            found += BoundedCheck(check, command, limit_s, remedy, "fail" if is_whole else "unknown").findings()
    judged = judge_all_reduce(judge_rates(found, reading.gpus, os.environ), expected.all_reduce_gb_per_s)
    return numbered_by_driver(judged, reading.gpus, os.environ)


def _check_memory(wanted_gib: float) -> Finding:
    free_gib = free_memory() / _GIB
    text = f"{free_gib:.1f} GiB can be had, {wanted_gib:g} are wanted"
    figures = {"free_gib": free_gib}
    if free_gib < wanted_gib:
        advice = "look for processes that others left, or ask for more (--mem)"
        return Finding("memory", "fail", f"{text}; {advice}", figures)
    return Finding("memory", "ok", text, figures)
