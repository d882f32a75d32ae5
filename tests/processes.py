"""Looks at the machine's processes from outside, as whoever supervises a run would."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Found = TypeVar("Found")

ROOT = Path(__file__).parents[1]

# One thread a rank, so that tests of two ranks measure nothing of each other on two cores.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}


def eventually(condition: Callable[[], Found | None], within_s: float, what: Callable[[], str] | str) -> Found:
    """Asks until the answer is true, and returns it; fails after ``within_s`` and says what was waited for."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {within_s} s: {what if isinstance(what, str) else what()}")


def living(mark: Path) -> dict[int, str]:
    """Processes that have the path among their arguments, by pid."""
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            arguments = Path(f"/proc/{entry}/cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
        except OSError:
            continue  # it ended just now; a zombie has no arguments
        if str(mark) in arguments:
            found[int(entry)] = arguments
    return found


def kill_all(mark: Path) -> None:
    """Ends the processes that a failed test left, and only those."""
    for pid in living(mark):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
