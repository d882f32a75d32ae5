"""What Slurm's queue says of a job, for people who watch it from anywhere on the cluster."""

import subprocess
from dataclasses import dataclass
from datetime import datetime

_ANSWER_S = 5.0
_FORMAT = "%A|%T|%r|%N|%L|%S"


@dataclass(frozen=True)
class Queued:
    """A job in the queue.

    Attributes:
        state: Slurm's word, such as ``RUNNING`` or ``PENDING``.
        reason: Why it waits; empty where it does not.
        nodes: Host list of its nodes, such as ``n[1-4]``; empty while it waits.
        time_left_s: Until its time limit, in seconds; None without a limit.
        start_s: Unix time at which it started, or is expected to; None where that is not known.
    """

    state: str
    reason: str
    nodes: str
    time_left_s: float | None
    start_s: float | None


def ask_squeue(job_id: str, answer_s: float = _ANSWER_S) -> Queued | None:
    """Asks Slurm about a job.

    Args:
        job_id: Its number.
        answer_s: Longest wait for the answer, in seconds.

    Returns:
        The answer; None where there is no Slurm, no answer in time, or no such job in the queue.
    """
    try:
        done = subprocess.run(
            ["squeue", "-h", "-j", job_id, "-o", _FORMAT],
            capture_output=True,
            text=True,
            timeout=answer_s,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    # The number of an array is also that of its first task, and brings them all.
    rows = [line.split("|") for line in done.stdout.splitlines()]
    for row in rows:
        if len(row) == _FORMAT.count("|") + 1 and row[0] == job_id:
            _, state, reason, nodes, left, start = row
            waits = reason if state == "PENDING" and reason != "None" else ""
            return Queued(state, waits, nodes, _duration_s(left), _time_s(start))
    return None


def _duration_s(text: str) -> float | None:
    """Slurm's ``[days-][[hours:]minutes:]seconds``; None for words such as UNLIMITED."""
    days, _, rest = text.rpartition("-")
    try:
        seconds = 0.0
        for part in rest.split(":"):
            seconds = seconds * 60 + int(part)
        return seconds + 86400 * int(days or 0)
    except ValueError:
        return None


def _time_s(text: str) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None
