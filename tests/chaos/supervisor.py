"""Types the same command again until the run is complete, while faults strike."""

import time
from collections.abc import Sequence
from pathlib import Path

from scaletrain.launch.verdicts import Verdict, read_verdicts
from tests.chaos.fork_server import ForkServer
from tests.chaos.launching import Attempt, Setting, Starter, node_of, start
from tests.chaos.strikes import Strike, Watch, strike
from tests.integration.runs import TinyRun

# A launcher ends the ranks that are left when one has ended.
GRACE_S = 5.0
LONGEST_ATTEMPT_S = 90.0


class Supervisor:
    """Starts one attempt after the other.

    Attributes:
        history: What struck, and how each attempt ended.
        attempts: Started so far.
        problem: What must not happen and did; empty as long as all is well.
    """

    def __init__(self, run: TinyRun, starter: Starter, server: ForkServer, disk: Path | None, nan: str) -> None:
        """Holds what each attempt needs.

        Args:
            run: Where it trains.
            starter: Who starts the ranks.
            server: Forks them.
            disk: What a strike fills.
            nan: The fault of the first attempt's ranks, see ``faulty_rank.py``.
        """
        self._run = run
        self._starter: Starter = starter
        self._server = server
        self._disk = disk
        self._nan = nan
        self._current: Attempt | None = None
        self.history: list[str] = []
        self.attempts = 0
        self.problem = ""

    def attempt(self, setting: Setting, strikes: Sequence[Strike]) -> bool:
        """Carries out one attempt to its end.

        Args:
            setting: How it is started.
            strikes: What strikes in it, in this order.

        Returns:
            Whether the run is complete.
        """
        self.attempts += 1
        watch, before = Watch(self._run.run_dir, node_of(self._run)), self._newest()
        nan = self._nan if self.attempts == 1 else ""
        self._current = start(self._run, setting, self._starter, self._server, self.attempts, nan)
        for what in strikes:
            struck = strike(what, self._current, watch, self._disk)
            self.history.append(f"{what}{'' if struck else ' (too late)'}")
        self._wait_for_end(self._current)
        newest = self._newest()
        verdict = self._verdict(newest) if newest > before else "ended before it began"
        self.history.append(f"{len(watch.lines())} steps, {verdict}")
        if verdict in (Verdict.USER_ERROR, Verdict.GAVE_UP, Verdict.STOPPED):
            self.problem = self.problem or f"attempt {self.attempts} ended with {verdict}"
        return verdict == Verdict.COMPLETE

    def end(self) -> None:
        """Leaves no process of the attempt under way."""
        if self._current is not None:
            self._current.kill()

    def _wait_for_end(self, attempt: Attempt) -> None:
        deadline_s, partly_dead_s = time.monotonic() + LONGEST_ATTEMPT_S, None
        while attempt.is_alive():
            now_s = time.monotonic()
            if attempt.is_partly_dead():
                partly_dead_s = partly_dead_s or now_s
            if partly_dead_s is not None and now_s - partly_dead_s > GRACE_S:
                break
            if now_s > deadline_s:
                self.problem = f"attempt {self.attempts} hangs"
                break
            time.sleep(0.02)
        attempt.kill()

    def _newest(self) -> int:
        folder = self._run.run_dir / "exit"
        return max((int(path.name) for path in folder.glob("*") if path.name.isdigit()), default=0)

    def _verdict(self, attempt: int) -> str:
        """Rank 0's verdict; a killed rank's is written by its keeper, a moment later."""
        deadline_s = time.monotonic() + 5
        while time.monotonic() < deadline_s:
            verdicts = read_verdicts(self._run.run_dir, attempt)
            if 0 in verdicts:
                return str(verdicts[0]["verdict"])
            time.sleep(0.05)
        return "no verdict"
