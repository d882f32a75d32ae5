"""What a host tells of itself before a job, by the rules that ship.

``python -m scaletrain.hardware.host_check LIMIT_S [RULES]`` prints the findings as JSON: a process of its own, since
file systems are asked that may never answer.
"""

import errno
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from scaletrain.hardware.bounded import announce
from scaletrain.hardware.findings import Finding
from scaletrain.hardware.gpus import STATUS_OF
from scaletrain.hardware.host_health import HostReader, HostReading
from scaletrain.hardware.host_judging import HostJudge
from scaletrain.hardware.kernel_files import read_text
from scaletrain.hardware.rules import Rule, load_host_rules

_PAUSE_S = 1.0
_MOUNTS = Path("/proc/mounts")
# File systems behind a server, by their names in Linux and in the manuals of those who make them.
_OF_SERVERS = ("beegfs", "ceph", "cifs", "gpfs", "lustre", "nfs", "nfs4", "panfs", "smb3", "wekafs")
_OF_SERVERS_IN_USER_SPACE = ("fuse.ceph", "fuse.glusterfs", "fuse.juicefs")
_TELLING = ("host.memory.used_share", "host.memory.free_gib")


def check_host(reader: HostReader, rules: Mapping[str, Rule], limit_s: float) -> list[Finding]:
    """Asks the host, again while a rule is about to be broken or a file system does not answer.

    Args:
        reader: Reads the host.
        rules: By which it is judged.
        limit_s: Longest time in seconds.

    Returns:
        What was asked, with figures; and one for each rule that is broken and each folder that does not answer.
    """
    judge = HostJudge(rules, "start")
    until_s = time.monotonic() + limit_s
    while True:
        reading = reader.read()
        now_s = time.monotonic()
        judge.judge_signals(_judged(reading, reader.folders), now_s)
        silent = [folder.name for folder in reading.folders if folder.waited_s]
        if not (judge.undecided or silent) or now_s + _PAUSE_S > until_s:
            break
        time.sleep(_PAUSE_S)
    findings = [Finding(one.rule, STATUS_OF[one.severity], one.text) for one in judge.active]
    for name, signal in judge.undecided:
        rule = rules[name]
        words = f"{signal}: {rule.title}, but not long or often enough to be sure (rule {name}: {rule.condition()})"
        findings.append(Finding(name, "warn", f"{words}; {rule.remedy}"))
    for name in silent:
        text = f"{reader.folders[name]}: no answer within {limit_s:g} s; look for a file server that is gone"
        findings.append(Finding(f"folder {name}", "fail", text))
    signals = reading.signals()
    figures = {name.removeprefix("host."): signals[name] for name in _TELLING if name in signals}
    text = "no rule is broken" if not findings else "see the findings beside"
    return [Finding("host", "ok", f"{len(signals)} signals, {text}", figures), *findings]


def folders_to_ask(mounts: Path = _MOUNTS) -> dict[str, Path]:
    """Folders that every job needs, and all that servers have mounted here, by a name.

    Args:
        mounts: The kernel's list of mounts.

    Returns:
        Paths by name.
    """
    lines = (line.split() for line in (read_text(mounts) or "").splitlines())
    # The kernel writes a space within a path as \\040.
    served = [
        words[1].replace("\\040", " ")
        for words in lines
        if len(words) > 2 and words[2] in (*_OF_SERVERS, *_OF_SERVERS_IN_USER_SPACE)
    ]
    return {"tmp": Path(tempfile.gettempdir()), "shm": Path("/dev/shm"), **{path: Path(path) for path in served}}


def _judged(reading: HostReading, folders: Mapping[str, Path]) -> dict[str, float]:
    """Signals without those of servers' mounts that say nothing wrong: mounted for reading, or not for this user."""
    left_out = set(_harmless(reading, folders))
    return {name: value for name, value in reading.signals().items() if name not in left_out}


def _harmless(reading: HostReading, folders: Mapping[str, Path]) -> Iterator[str]:
    for folder in reading.folders:
        if folder.name == str(folders[folder.name]):
            yield f"host.folder.{folder.name}.read_only"
            if folder.error == os.strerror(errno.EACCES):
                yield f"host.folder.{folder.name}.failed"


def main(limit_s: float, rules: Path | None) -> None:
    """Checks this host, and prints the findings."""
    announce("looks for the file systems of servers, and a folder for temporary files")
    folders = folders_to_ask()
    announce("reads what the host tells")
    findings = check_host(HostReader(folders), load_host_rules(rules), limit_s)
    print(json.dumps([asdict(one) for one in findings]), flush=True)
    os._exit(0)  # without waiting for a thread that hangs in a file system


if __name__ == "__main__":
    main(float(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
