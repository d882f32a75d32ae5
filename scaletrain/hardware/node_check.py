"""Whether a node may take part in a training: looked at on the node, before the training starts there.

``python -m scaletrain.hardware.node_check JSON`` prints what it finds, and leaves it in the shared folder that the JSON
names. See ``Expectation`` for its keys.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from scaletrain.errors import ConfigError
from scaletrain.files import replace_text
from scaletrain.hardware.bounded import BoundedCheck
from scaletrain.hardware.findings import Finding
from scaletrain.hardware.host import free_memory

_GIB = 2**30
_START_S = 5.0  # of a process, on a busy node
_FOLDERS_S = 15.0
_DRIVER_S = 90.0  # the first answer, and while gpus.py waits for a fault to pass
_NAMES_S = 10.0
_WRITE_S = 10.0


@dataclass(frozen=True)
class Expectation:
    """What a job wants of a node.

    Attributes:
        gpus: GPUs; 0 for a training on CPUs.
        shared_dir: Folder on the shared file system, with a file ``token``.
        token: What stands in that file.
        addresses: Address of each node of the job by name.
        min_free_gib: Free space wanted in the folder for temporary files.
        min_memory_gib: Memory wanted.
        limit_s: Longest time for the process that calculates.
    """

    gpus: int
    shared_dir: str
    token: str
    addresses: Mapping[str, str] = field(default_factory=dict)
    min_free_gib: float = 1.0
    min_memory_gib: float = 1.0
    limit_s: float = 60.0

    @classmethod
    def from_json(cls, text: str) -> "Expectation":
        """Reads an expectation.

        Args:
            text: A JSON object with the attributes as keys.

        Returns:
            The expectation.

        Raises:
            ConfigError: It is none; says what is wrong with it.
        """
        try:
            given = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"the expectation {text!r} is not JSON: {error}") from None
        known = {one.name for one in fields(cls)}
        if not isinstance(given, dict) or given.keys() - known or {"gpus", "shared_dir", "token"} - given.keys():
            raise ConfigError(
                f"the expectation {text!r} must be an object with gpus, shared_dir and token, and may have "
                f"{', '.join(sorted(known - {'gpus', 'shared_dir', 'token'}))}"
            )
        return cls(**given)

    def to_json(self) -> str:
        """Writes the expectation as ``from_json`` reads it."""
        return json.dumps(asdict(self))


def check_node(expected: Expectation) -> list[Finding]:
    """Looks at all that a training needs of this node.

    What can hang runs beside the rest, in processes with a limit, so that all takes no longer than the longest of them;
    but the GPUs calculate only after the driver was asked, which would else take this for another job's leftovers.

    Args:
        expected: What the job wants.

    Returns:
        A finding for each check.
    """
    gpus = 0 if os.environ.get("DS_ACCELERATOR") == "cpu" else expected.gpus
    folder_arguments = [expected.shared_dir, expected.token, str(expected.min_free_gib)]
    checks = [
        BoundedCheck(
            "folders",
            ["scaletrain.hardware.folders", *folder_arguments],
            _FOLDERS_S,
            "look for a file server that is gone",
        ),
        BoundedCheck(
            "names",
            ["scaletrain.hardware.names", json.dumps(dict(expected.addresses)), str(_NAMES_S)],
            _NAMES_S + _START_S,
            "look at the node's resolver",
        ),
    ]
    findings = [_check_memory(expected.min_memory_gib)]
    if gpus:
        driver = BoundedCheck("nvml", ["scaletrain.hardware.gpus", str(gpus)], _DRIVER_S, "reboot the node")
        findings += driver.findings()
    if any(one.check == "nvml" and one.status == "fail" for one in findings):
        findings.append(Finding("arithmetic", "unknown", "left out: the driver does not answer"))
    else:
        burn = ["scaletrain.preflight.burn", str(gpus)]
        checks.append(BoundedCheck("arithmetic", burn, expected.limit_s, "reboot the node"))
    if not gpus:
        why = "DS_ACCELERATOR=cpu" if expected.gpus else "this training calculates on CPUs"
        findings.append(Finding("gpus", "ok", f"left out: {why}"))
    return findings + [finding for check in checks for finding in check.findings()]


def node_name() -> str:
    """Slurm's name of this node, or the machine's own."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def _check_memory(wanted_gib: float) -> Finding:
    free_gib = free_memory() / _GIB
    text = f"{free_gib:.1f} GiB can be had, {wanted_gib:g} are wanted"
    if free_gib < wanted_gib:
        return Finding("memory", "fail", f"{text}; look for processes that others left, or ask for more (--mem)")
    return Finding("memory", "ok", text)


def _write(path: Path, findings: Sequence[Finding], name: str) -> str:
    """Leaves the result for the first node; returns what was wrong, or nothing."""
    # Not said before it is done: a thread that hangs in the file system says nothing.
    problems = [f"no answer within {_WRITE_S:g} s"]

    def write() -> None:
        told = {"host": name, "time_s": time.time(), "findings": [asdict(one) for one in findings]}
        try:
            replace_text(path, json.dumps(told) + "\n")
            problems[:] = []
        except OSError as error:
            problems[:] = [str(error.strerror)]

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    thread.join(_WRITE_S)
    return "".join(problems)


def main(argv: Sequence[str]) -> int:
    """Checks this node.

    Args:
        argv: The expectation as JSON.

    Returns:
        0, or 1 where a check failed or the result cannot be written; 2 where the expectation is none.
    """
    if len(argv) != 1:
        print("usage: python -m scaletrain.hardware.node_check JSON", file=sys.stderr)
        return 2
    try:
        expected = Expectation.from_json(argv[0])
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    findings = check_node(expected)
    name = node_name()
    for one in findings:
        print(f"{name}: {one.status:<7} {one.check}: {one.detail}", flush=True)
    path = Path(expected.shared_dir) / f"{name}.json"
    problem = _write(path, findings, name)
    if problem:
        print(f"{name}: fail    shared files: {path} cannot be written: {problem}", flush=True)
        return 1
    return int(any(one.status == "fail" for one in findings))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
