"""A check in a process of its own: a call to a sick driver, a dead file server or a resolver may never return."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial

from scaletrain.hardware.findings import Finding, Status
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
        silent: Status where it has not even said that it begins: "unknown" where that is no fault of what it looks at,
            but of a node that is overloaded, or of a limit that is too short.
    """

    def __init__(
        self, check: str, command: Sequence[str], limit_s: float, remedy: str, silent: Status = "fail"
    ) -> None:
        self._check, self._limit_s, self._remedy, self._silent = check, limit_s, remedy, silent
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
            last = f" ({_last_line(said)})" if said.strip() else ", and it has not begun"
            status = "fail" if said.strip() else self._silent
            return [Finding(self._check, status, f"no answer within {self._limit_s:.3g} s{last}; {self._remedy}")]
        try:
            return [Finding(**one) for one in json.loads(printed.splitlines()[-1])]
        except (ValueError, IndexError, TypeError):
            took_s = time.monotonic() - self._started_s
            last = _last_line(said) or "no output"
            text = f"ended with code {self._process.returncode} after {took_s:.0f} s: {last}"
            return [Finding(self._check, "fail", text)]

    def _kill(self) -> str:
        """Ends it; returns what it said before. In a driver's call it may outlive even SIGKILL."""
        self._process.kill()
        try:
            return self._process.communicate(timeout=_REAP_S)[1]
        except subprocess.TimeoutExpired as expired:
            return (expired.stderr or b"").decode(errors="replace")  # bytes even of a process whose output is text


def announce(doing: str) -> None:
    """Says on standard error what is done next, for ``BoundedCheck``."""
    print(doing, file=sys.stderr, flush=True)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]
