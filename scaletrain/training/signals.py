"""Requests to a run: signals, the files ``stop`` and ``save``, the job's end; seen at the next step's border."""

import contextlib
import faulthandler
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from scaletrain.launch.deadline import Deadline, recent_saves_s
from scaletrain.launch.processes import own_start_s
from scaletrain.launch.signal_thread import ENDING_SIGNALS, SignalThread
from scaletrain.launch.verdicts import EXIT_CODES, Ending, Verdict

logger = logging.getLogger(__name__)

KINDS = (Verdict.STOPPED, Verdict.SICK_NODE, Verdict.REQUEUE)
"""Kinds of request to end, the weightier first: a terminal's Ctrl-C reaches the ranks as SIGINT, and a moment later the
launcher adds a SIGTERM. A job that is to end soon anyway should start again without a sick node."""

SAVE_KIND = len(KINDS)
"""Place of the request to save among those that ``pending`` gives."""

AGAIN_S = 1.0
"""Time from which the same signal counts as a second one: launchers and terminals often send one twice at once."""


@dataclass(frozen=True)
class Sickness:
    """What is wrong with a node, where the run should go on without it.

    Attributes:
        ending: How the run ends, with the nodes to blame.
        may_save: Whether what this rank holds can be trusted and read, so that it is saved first.
    """

    ending: Ending
    may_save: bool


def _leave(ending: Ending) -> None:
    os._exit(EXIT_CODES[ending.verdict])


class StopRequests:
    """Collects what is asked of this rank.

    A signal is a request, which the loop sees at its next border. The same signal once more ends the process at once,
    also while its main thread waits in a collective. Another signal does not: Slurm sends SIGTERM after the SIGUSR2
    that was asked for, and DeepSpeed's launcher sends SIGTERM after a terminal's SIGINT.

    Attributes:
        sickness: Why this rank asks to leave a node; None where it does not. Any thread may set it.
    """

    def __init__(
        self,
        run_dir: Path,
        watch_file: bool,
        end_at_once: Callable[[Ending], None] = _leave,
        end_s: float | None = None,
    ) -> None:
        """Installs the handlers; called once the ranks are connected, since before that dying at once is right.

        Args:
            run_dir: A file ``stop`` in it ends the run, a file ``save`` has it saved; each is deleted when seen, and
                not heeded where it is older than this process.
            watch_file: Whether this rank looks for the files, and at the time.
            end_at_once: Ends the process, called in another thread.
            end_s: When this process will be ended, in Unix seconds; None for never.
        """
        self._files = RequestFiles(run_dir, own_start_s()) if watch_file else None
        saves_s = recent_saves_s(run_dir / "events.jsonl") if watch_file and end_s is not None else ()
        self._deadline = Deadline(end_s if watch_file else None, saves_s)
        self._end_at_once = end_at_once
        self._seen: dict[Verdict, str] = {}
        self._first_s: dict[int, float] = {}
        self.sickness: Sickness | None = None
        for number in ENDING_SIGNALS:
            signal.signal(number, self._on_signal)
        self._thread = SignalThread(self._on_arrival)
        if hasattr(signal, "SIGQUIT"):
            faulthandler.register(signal.SIGQUIT, file=sys.stderr, all_threads=True)

    def close(self) -> None:
        """Ends the thread that hears second signals; first ones are still requests."""
        self._thread.close()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        is_first = not self._seen
        self._note(number)
        if self._files is not None and is_first:
            # Ctrl-C also ends the tee that reads this, and a log's disk may be full: neither must cost the save.
            with contextlib.suppress(OSError):
                os.write(2, b"asked to end: finishes the step, then saves; the same signal again ends at once\n")

    def _note(self, number: int) -> None:
        verdict = Verdict.STOPPED if number == signal.SIGINT else Verdict.REQUEUE
        self._seen.setdefault(verdict, signal.Signals(number).name)

    def _on_arrival(self, number: int) -> None:
        """In a thread, at once; the handler above may wait until the main thread comes back from C code."""
        now_s = time.monotonic()
        if now_s - self._first_s.setdefault(number, now_s) < AGAIN_S:
            return
        self._note(number)
        verdict = next(kind for kind in KINDS if kind in self._seen)
        name = signal.Signals(number).name
        self._end_at_once(Ending(verdict, f"{name} came again, {now_s - self._first_s[number]:.0f} s after the first"))

    def pending(self, save_s: float = 0.0) -> tuple[bool, ...]:
        """Which requests this rank has met; called once at each border.

        Args:
            save_s: Duration of the last save in this start, in seconds; 0 before the first.

        Returns:
            One for each of ``KINDS``, and last whether to save and go on.
        """
        if self._take_file("stop"):
            self._seen.setdefault(Verdict.STOPPED, "stop file")
        if self._deadline.is_near(time.time(), save_s):
            self._seen.setdefault(Verdict.REQUEUE, "the job ends soon")
        asked = {*self._seen, *([] if self.sickness is None else [Verdict.SICK_NODE])}
        return (*(kind in asked for kind in KINDS), self._take_file("save"))

    def reason(self, verdict: Verdict) -> str:
        """What asked this rank for it, or that another rank was asked."""
        return self._seen.get(verdict, "asked on another rank")

    def _take_file(self, name: str) -> bool:
        return self._files is not None and self._files.take(name)


class RequestFiles:
    """The files by which a user asks for something; what is wrong with one of them never ends a run."""

    def __init__(self, run_dir: Path, started_s: float) -> None:
        """Deletes what was asked of an earlier start, with a warning.

        Args:
            run_dir: The folder that they are in.
            started_s: When this start began, in Unix seconds.
        """
        self._run_dir = run_dir
        self._served: set[str] = set()
        self._warned: set[str] = set()
        for name in ("stop", "save"):
            with contextlib.suppress(OSError):
                if (run_dir / name).lstat().st_mtime < started_s:
                    logger.warning("%s is older than this start: it is deleted, not heeded", run_dir / name)
                    self._remove(name)

    def take(self, name: str) -> bool:
        """Whether a file is there; then it is deleted. One that cannot be deleted counts once.

        Args:
            name: ``stop`` or ``save``.

        Returns:
            Whether it asks for something that was not asked before.
        """
        try:
            (self._run_dir / name).lstat()
        except FileNotFoundError:
            self._served.discard(name)
            return False
        except OSError as error:
            self._warn(name, f"cannot be looked for: {error.strerror}")
            return False
        if name in self._served:
            return False
        self._remove(name)
        return True

    def _remove(self, name: str) -> None:
        try:
            (self._run_dir / name).unlink(missing_ok=True)
        except OSError as error:
            self._served.add(name)
            self._warn(name, f"cannot be deleted, and counts once: {error.strerror}")

    def _warn(self, name: str, problem: str) -> None:
        if name not in self._warned:
            self._warned.add(name)
            logger.warning("the file %s %s", self._run_dir / name, problem)
