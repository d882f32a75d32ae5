"""Whether a node may take part in a training: looked at on the node, before the training starts there.

``python -m scaletrain.hardware.node_check JSON`` prints what it finds, and leaves it in the shared folder that the JSON
names. See ``Expectation`` for its keys.
"""

import contextlib
import ipaddress
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from scaletrain.hardware.findings import Finding, Status
from scaletrain.hardware.host import free_memory

_GIB = 2**30
_SHM_GIB = 1.0
"""Free shared memory below which DataLoader workers may not be able to hand their batches over."""
_NAMES_S = 10.0
_DRIVER_S = 30.0


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


def check_node(expected: Expectation) -> list[Finding]:
    """Looks at all that a training needs of this node.

    Args:
        expected: What the job wants.

    Returns:
        A finding for each check.
    """
    findings = [
        _check_memory(expected.min_memory_gib),
        _check_disk(Path(tempfile.gettempdir()), expected.min_free_gib),
        _check_shm(),
        _check_shared(Path(expected.shared_dir), expected.token),
        *_check_names(expected.addresses),
    ]
    if expected.gpus:
        findings += _ask_process("nvml", ["scaletrain.hardware.gpus", str(expected.gpus)], _DRIVER_S)
    else:
        findings.append(Finding("gpus", "ok", "left out: this training calculates on CPUs"))
    return findings + _ask_process("arithmetic", ["scaletrain.preflight.burn", str(expected.gpus)], expected.limit_s)


def node_name() -> str:
    """Slurm's name of this node, or the machine's own."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def _check_memory(wanted_gib: float) -> Finding:
    free_gib = free_memory() / _GIB
    text = f"{free_gib:.1f} GiB can be had, {wanted_gib:g} are wanted"
    return Finding("memory", "ok" if free_gib >= wanted_gib else "fail", text)


def _check_disk(folder: Path, wanted_gib: float) -> Finding:
    free_gib = shutil.disk_usage(folder).free / _GIB
    text = f"{free_gib:.1f} GiB free in {folder}, {wanted_gib:g} are wanted"
    return Finding("disk", "ok" if free_gib >= wanted_gib else "fail", text)


def _check_shm() -> Finding:
    try:
        free_gib = shutil.disk_usage("/dev/shm").free / _GIB
    except OSError as error:
        return Finding("shm", "warn", f"/dev/shm: {error.strerror}; DataLoader workers need it")
    status: Status = "ok" if free_gib >= _SHM_GIB else "warn"
    return Finding(
        "shm", status, f"{free_gib:.1f} GiB free in /dev/shm, {_SHM_GIB:g} are wanted for DataLoader workers"
    )


def _check_shared(folder: Path, token: str) -> Finding:
    """Reads what the first node wrote; that this node can write there its result shows."""
    try:
        found = (folder / "token").read_text()
    except OSError as error:
        return Finding("shared files", "fail", f"{folder}: {error.strerror}; mount the shared file system")
    if found != token:
        return Finding("shared files", "fail", f"{folder}/token is not what the first node wrote: a stale mount")
    free_gib = shutil.disk_usage(folder).free / _GIB
    status: Status = "ok" if free_gib >= 1 else "warn"
    return Finding("shared files", status, f"{free_gib:.1f} GiB free in {folder}")


def _check_names(addresses: Mapping[str, str]) -> list[Finding]:
    """Launchers use the addresses that Slurm uses; names matter to libraries that look their own host up."""
    unknown = [name for name in {*addresses, socket.gethostname()} if not _resolves(name)]
    unreachable = [
        f"{name} ({address})" for name, address in addresses.items() if not _is_ip(address) and not _resolves(address)
    ]
    if unreachable:
        return [Finding("names", "fail", f"no address for {', '.join(sorted(unreachable))}; add them to DNS or hosts")]
    if unknown:
        return [Finding("names", "warn", f"{', '.join(sorted(unknown))} cannot be looked up; add them to DNS or hosts")]
    return [Finding("names", "ok", f"{len(addresses)} nodes and this one can be looked up")]


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _resolves(name: str) -> bool:
    # In a process: a resolver without a server waits for minutes, and cannot be told not to.
    code = "import socket, sys; socket.getaddrinfo(sys.argv[1], None)"
    try:
        command = [sys.executable, "-S", "-E", "-c", code, name]
        return subprocess.run(command, capture_output=True, timeout=_NAMES_S).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def _ask_process(check: str, command: Sequence[str], limit_s: float) -> list[Finding]:
    """Runs a module that prints findings as JSON; that it hangs or dies is a finding, too."""
    started_s = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        printed, complaint = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # in the driver not even SIGKILL ends it
            process.communicate(timeout=5)
        return [Finding(check, "fail", f"no answer within {limit_s:g} s; reboot the node")]
    try:
        return [Finding(**one) for one in json.loads(printed.splitlines()[-1])]
    except (ValueError, IndexError, TypeError):
        last = (complaint.strip().splitlines() or ["no output"])[-1]
        took_s = time.monotonic() - started_s
        return [Finding(check, "fail", f"ended with code {process.returncode} after {took_s:.0f} s: {last}")]


def main(argv: Sequence[str]) -> int:
    """Checks this node.

    Args:
        argv: The expectation as JSON.

    Returns:
        0, or 1 where a check failed or the result cannot be written.
    """
    expected = Expectation(**json.loads(argv[0]))
    findings = check_node(expected)
    name = node_name()
    for one in findings:
        print(f"{name}: {one.status:<7} {one.check}: {one.detail}", flush=True)
    told: dict[str, Any] = {"host": name, "time_s": time.time(), "findings": [asdict(one) for one in findings]}
    path = Path(expected.shared_dir) / f"{name}.json"
    try:
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps(told) + "\n")
        os.replace(draft, path)
    except OSError as error:
        print(f"{name}: fail    shared files: {path} cannot be written: {error.strerror}")
        return 1
    return int(any(one.status == "fail" for one in findings))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
