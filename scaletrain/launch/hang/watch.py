"""The keeper's part in watching for hangs: it reads the heartbeat, and has a rank that is late looked after.

Nothing here waits: what may, the run directory and the stacks, is left to a process of its own, the examiner.
"""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import scaletrain
from scaletrain.launch.attempts import RankProcess
from scaletrain.launch.hang.flight_recorder import clear_dumps
from scaletrain.launch.hang.heartbeat import HeartbeatReader
from scaletrain.launch.hang.limits import StandingStill, Watched
from scaletrain.launch.verdicts import Ending, Verdict

_LONGEST_GAP_S = 4.0  # twice as long as a keeper waits between two looks
_REPORT_S = 150.0
"""Time that a report may take, and 20 ms more for each rank; then the rank is ended without one."""
_PER_RANK_S = 0.02
_LAST_WORDS_S = 3.0


class HangWatch:
    """Finds out that a rank hangs, or that another one does and this one waits for it.

    Args:
        watched: How to see the rank, and the limits.
        rank: The rank.
    """

    def __init__(self, watched: Watched, rank: RankProcess) -> None:
        self._watched = watched
        self._rank = rank
        self._reader = HeartbeatReader(watched.heartbeat)
        self._still = StandingStill(self._reader, _LONGEST_GAP_S)
        self._examiner: subprocess.Popen[bytes] | None = None
        self._said = b""

    def look(self, now_s: float) -> Ending | None:
        """How the rank is to end, once that is known.

        Args:
            now_s: The time, on the monotonic clock; called at least every two seconds.
        """
        beat, seconds = self._still.look(now_s)
        ending = self._heard()
        if ending is not None:
            return ending
        limit_s = self._watched.limits.of(self._reader.longest_s(beat.phase))
        if seconds > limit_s + _REPORT_S + _PER_RANK_S * self._watched.world_size:
            told = f"{seconds:.0f} s in {self.place}, more than {limit_s:.0f} s"
            return Ending(Verdict.HANG, f"hang of rank {self._rank.rank}: {told}; no report came to be in time")
        if self._examiner is None and seconds >= self._watched.limits.late_s:
            self._examine(seconds)
        return None

    @property
    def place(self) -> str:
        """Where the rank is, or was when it ended: its phase and step."""
        beat = self._reader.read()
        return f"{beat.phase.label} of step {beat.step}"

    def settle(self) -> Ending | None:
        """Ends the examiner; what it has concluded, or that it was reporting when the rank ended."""
        try:
            return self._settle()
        finally:
            clear_dumps(self._watched.dumps)

    def _settle(self) -> Ending | None:
        if self._examiner is None:
            return None
        if self.is_reporting:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._examiner.wait(_LAST_WORDS_S)
        ending = self._heard()
        if ending is None and self.is_reporting:
            ending = Ending(Verdict.HANG, f"hang: rank {self._rank.rank} was ended while a report was made")
        if self._examiner is not None:
            self._examiner.kill()
            self._examiner.wait()
        return ending

    @property
    def is_reporting(self) -> bool:
        """Whether the examiner takes part in a report."""
        self._read()
        return self._said.startswith(b"reporting")

    def _examine(self, seconds: float) -> None:
        task = {
            "rank": self._rank.to_json(),
            "heartbeat": self._watched.to_json(),
            "seconds": seconds,
            "keeper": os.getpid(),
        }
        self._said = b""
        self._examiner = subprocess.Popen(
            [sys.executable, "-S", "-E", "-m", "scaletrain.launch.hang.examiner", json.dumps(task)],
            cwd=Path(scaletrain.__file__).resolve().parents[1],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=(self._watched.heartbeat, self._watched.stacks),
        )
        assert self._examiner.stdout is not None
        os.set_blocking(self._examiner.stdout.fileno(), False)

    def _read(self) -> None:
        if self._examiner is not None and self._examiner.stdout is not None:
            while more := self._examiner.stdout.read():
                self._said += more

    def _heard(self) -> Ending | None:
        """What an examiner that has ended has said; one that failed is replaced by another at the next look."""
        if self._examiner is None or self._examiner.poll() is None:
            return None
        self._read()
        assert self._examiner.stdout is not None
        self._examiner.stdout.close()
        self._examiner = None
        last = self._said.decode(errors="replace").strip().rpartition("\n")[2]
        try:
            told = json.loads(last)
        except ValueError:
            return None
        return Ending(Verdict(told["verdict"]), str(told["reason"]), tuple(told["hosts"]))
