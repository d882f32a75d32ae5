"""Requests to end a run: signals and the ``stop`` file, seen at the next step's border."""

import faulthandler
import os
import signal
import sys
from pathlib import Path
from types import FrameType

from scaletrain.launch.verdicts import Verdict

_REQUEUE = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

KINDS = (Verdict.STOPPED, Verdict.REQUEUE)
"""Kinds of request, the weightier first: a terminal's Ctrl-C reaches the ranks as SIGINT, and a moment later the
launcher adds a SIGTERM."""


class StopRequests:
    """Collects what asks this rank to end."""

    def __init__(self, run_dir: Path, watch_file: bool) -> None:
        """Installs the handlers; called once the ranks are connected, since before that dying at once is right.

        Args:
            run_dir: A file ``stop`` in it ends the run, and is deleted when seen.
            watch_file: Whether this rank looks for the file.
        """
        self._file = run_dir / "stop" if watch_file else None
        self._seen: dict[Verdict, str] = {}
        for number in _REQUEUE:
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        if hasattr(signal, "SIGQUIT"):
            faulthandler.register(signal.SIGQUIT, file=sys.stderr, all_threads=True)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        verdict = Verdict.STOPPED if number == signal.SIGINT else Verdict.REQUEUE
        if self._file is not None and not self._seen:
            os.write(2, b"asked to end: finishes the step, then saves\n")
        self._seen.setdefault(verdict, signal.Signals(number).name)

    def pending(self) -> tuple[bool, ...]:
        """Which kinds of request this rank has met, in the order of ``KINDS``."""
        if self._file is not None and self._file.exists():
            self._file.unlink(missing_ok=True)
            self._seen.setdefault(Verdict.STOPPED, "stop file")
        return tuple(kind in self._seen for kind in KINDS)

    def reason(self, verdict: Verdict) -> str:
        """What asked this rank for it, or that another rank was asked."""
        return self._seen.get(verdict, "asked on another rank")
