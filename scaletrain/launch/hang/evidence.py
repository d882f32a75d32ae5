"""What a keeper can tell of its rank from outside: what it does, in which state it is, and its stacks."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scaletrain.launch.hang.heartbeat import Phase
from scaletrain.launch.hang.stacks import Stacks, take_stacks
from scaletrain.launch.processes import Process

_SAMPLE_S = 0.5
_SAMPLES = 5
_STACKS_S = 20.0
_MOST_WORKERS = 16
_MOST_NAMED = 2
MOVING = "moving on"
"""In place of a state, of a rank that went on while it was looked at: state and stacks are not those of its phase."""
_LASTING = ("T", "t", "D")
"""States that are news where they last: a disk is read from for a moment, and a profiler stops for one."""
_WORDS = {"T": "stopped", "t": "stopped by a debugger", "D": "blocked in the kernel", "R": "running", "S": "sleeping"}


@dataclass(frozen=True)
class Evidence:
    """A rank as its keeper saw it.

    Attributes:
        rank: Global index.
        host: Its machine.
        gpu: Its device, for people; empty where it has none.
        pid: Its process.
        step: Number of the step that is being made.
        phase: What it does, as ``Phase`` numbers it.
        ordinal: Phases entered since the step began.
        micro_step: Which micro step of the step, from 0.
        seconds: For how long.
        limit_s: For how long at most.
        state: Of its main thread, the kernel's letter: R, S, D, T, ...; empty where the process is gone; or ``MOVING``.
        cpu_share: CPU time of the main thread, as a share of the time for which it was looked at.
        collective: The collective that it waits in; empty where it is in none, or where that is not known.
        has_stacks: Whether that is known.
        wchan: Where in the kernel it waits.
        moved_on: Whether it came to where it is after the report had begun.
        workers: Processes below it that do not run, in words; empty where there are none.
    """

    rank: int
    host: str
    gpu: str
    pid: int
    step: int
    phase: int
    ordinal: int
    micro_step: int
    seconds: float
    limit_s: float
    state: str
    cpu_share: float
    collective: str
    has_stacks: bool
    wchan: str
    moved_on: bool = False
    workers: str = ""

    @property
    def place(self) -> tuple[int, int]:
        """Orders ranks by how far they have come."""
        return self.step, self.ordinal

    @property
    def stands(self) -> str:
        """Its state in words."""
        if self.state == MOVING:
            return MOVING
        words = _WORDS.get(self.state, f"in state {self.state}" if self.state else "gone")
        if self.collective:
            return f"{words}, waits in {self.collective}"
        return f"running ({self.cpu_share:.0%} of a core)" if self.cpu_share > 0.5 else words

    @property
    def name(self) -> str:
        """What a report calls it."""
        return f"rank {self.rank} on {self.host}" + (f" ({self.gpu})" if self.gpu else "")

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self) | {"phase": Phase(self.phase).label}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Evidence":
        """Takes back what ``to_json`` gave."""
        return cls(**{**content, "phase": int(Phase[str(content["phase"]).upper()])})


@dataclass(frozen=True)
class Seen:
    """What the kernel says of a process's main thread."""

    state: str
    cpu_share: float


def watch_for_a_moment(pids: Sequence[int]) -> list[Seen]:
    """Looks at processes for half a second, all at the same time.

    Returns:
        Of each its state, which is one of ``_LASTING`` where it was that at every look, and the share of the time for
        which it computed.
    """
    begin_s = time.monotonic()
    looks = [[_state_and_cpu_s(pid)] for pid in pids]
    for _ in range(_SAMPLES):
        time.sleep(_SAMPLE_S / _SAMPLES)
        for pid, found in zip(pids, looks, strict=True):
            found.append(_state_and_cpu_s(pid))
    return [_seen(found, time.monotonic() - begin_s) for found in looks]


def _seen(looks: Sequence[tuple[str, float]], seconds: float) -> Seen:
    states = {state for state, _ in looks}
    state = looks[-1][0]
    if state in _LASTING and len(states) > 1:
        state = "S"
    return Seen(state, (looks[-1][1] - looks[0][1]) / seconds)


def workers_that_stand(seen: Mapping[int, Seen]) -> str:
    """Which workers of a rank do not run, in words.

    Args:
        seen: What was seen of its workers, by their process.
    """
    standing = [f"its worker {pid} is {_WORDS[one.state]}" for pid, one in seen.items() if one.state in _LASTING]
    more = f" and {len(standing) - _MOST_NAMED} more" if len(standing) > _MOST_NAMED else ""
    return ", ".join(standing[:_MOST_NAMED]) + more


def stacks_of_all(
    process: Process, workers: Sequence[Process], py_spy: str, memory: int
) -> tuple[Stacks, dict[int, Stacks]]:
    """Stacks of a rank, and those of its workers for which there is time.

    Args:
        process: The rank.
        workers: Processes below it.
        py_spy: See ``take_stacks``.
        memory: See ``take_stacks``.
    """
    deadline_s = time.monotonic() + _STACKS_S
    own = take_stacks(process, py_spy, memory)
    found = {}
    for worker in workers[:_MOST_WORKERS]:
        if time.monotonic() < deadline_s and worker.is_alive():
            found[worker.pid] = take_stacks(worker, py_spy, memory)
    return own, found


def describe_process(pid: int) -> str:
    """What the kernel tells of a process, for people: its name, state, and where in the kernel it is."""
    state, _ = _state_and_cpu_s(pid)
    lines = [f"process {pid}: {_read(pid, 'comm')}, {_WORDS.get(state, state or 'gone')}"]
    if wchan := kernel_place(pid):
        lines.append(f"waits in the kernel at {wchan}")
    if stack := _read(pid, "stack"):  # for root alone
        lines += ["kernel stack:", *(f"    {line}" for line in stack.splitlines())]
    return "\n".join(lines)


def kernel_place(pid: int) -> str:
    """Function of the kernel that a process waits in; empty where it waits in none or the kernel does not tell."""
    found = _read(pid, "wchan")
    return "" if found == "0" else found


def _state_and_cpu_s(pid: int) -> tuple[str, float]:
    text = _read(pid, f"task/{pid}/stat")
    fields = text.rpartition(")")[2].split()
    if not fields:
        return "", 0.0
    return fields[0], (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace").strip()
    except OSError:
        return ""
