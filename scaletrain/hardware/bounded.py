"""A check in a process of its own: a call to a sick driver, a dead file server or a resolver may never return."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial

from scaletrain.hardware.findings import Finding
from scaletrain.lifetime import end_with

_REAP_S = 5.0


class BoundedCheck:
    """Runs a module that prints a list of findings as JSON; that it hangs or dies is a finding, too.

    The module says on its standard error what it is about to do, so that it is known what it hung in.

    Args:
        check: Name of the finding where the module does not answer.
        command: The module and its arguments.
        limit_s: Longest time it may take.
        remedy: What to do where it hangs.
    """

    def __init__(self, check: str, command: Sequence[str], limit_s: float, remedy: str) -> None:
        self._check, self._limit_s, self._remedy = check, limit_s, remedy
        self._started_s = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            preexec_fn=partial(end_with, os.getpid()),
        )

    def findings(self) -> list[Finding]:
        """What it found; waits for no longer than the limit, and a moment for the kernel to end it."""
        left_s = self._started_s + self._limit_s - time.monotonic()
        if self._process.poll() is not None:
            left_s = _REAP_S  # it has answered, however late that is looked at
        try:
            printed, said = self._process.communicate(timeout=max(0.0, left_s))
        except subprocess.TimeoutExpired:
            said = self._kill()
            last = f" ({_last_line(said)})" if said.strip() else ""
            return [self._failure(f"no answer within {self._limit_s:.3g} s{last}; {self._remedy}")]
        try:
            return [Finding(**one) for one in json.loads(printed.splitlines()[-1])]
        except (ValueError, IndexError, TypeError):
            took_s = time.monotonic() - self._started_s
            last = _last_line(said) or "no output"
            return [self._failure(f"ended with code {self._process.returncode} after {took_s:.0f} s: {last}")]

    def _kill(self) -> str:
        """Ends it; returns what it said before. In a driver's call it may outlive even SIGKILL."""
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.communicate(timeout=_REAP_S)[1]
        return ""

    def _failure(self, detail: str) -> Finding:
        return Finding(self._check, "fail", detail)


def announce(doing: str) -> None:
    """Says on standard error what is done next, for ``BoundedCheck``."""
    print(doing, file=sys.stderr, flush=True)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]
