"""What a keeper sees of the other ranks of its attempt until they have trained a step together.

Up to then a rank that ends leaves the others waiting for it in C code, half an hour long where nobody ends them. From
the first step on all ranks hear of a request to end at the same border, and may be saving: they are left alone.
"""

import contextlib
import os
import time
from pathlib import Path

from scaletrain.launch.attempts import RankProcess
from scaletrain.launch.verdicts import Ending, Verdict, read_verdict

_TRAINED = "trained"
_LOOK_S = 2.0
_LOOK_S_PER_FILE = 0.01  # a thousand keepers that list a thousand files must not keep a file server busy


def mark_trained(run_dir: Path, attempt: int) -> None:
    """Leaves word that the ranks of an attempt have trained a step; for rank 0.

    Args:
        run_dir: The run's folder.
        attempt: Which start of the run.
    """
    with contextlib.suppress(OSError):  # without it a rank is ended that waits for one that is gone
        (run_dir / "exit" / str(attempt) / _TRAINED).touch()


class Siblings:
    """Finds out that a rank waits for one that is gone.

    Args:
        rank_process: The rank that may wait.
        grace_s: Time in which the others may end by themselves once one has.
    """

    def __init__(self, rank_process: RankProcess, grace_s: float) -> None:
        self._rank_process = rank_process
        self._grace_s = grace_s
        self._attempt: int | None = None
        self._is_settled = False
        self._next_look_s = float("-inf")
        self._seen_s: float | None = None

    def fallen(self) -> Ending | None:
        """How another rank ended before the first step; None where none did, or not for long enough.

        Complete is no such end: all ranks find at their start that there is nothing to do.
        """
        now_s = time.monotonic()
        if self._is_settled or now_s < self._next_look_s:
            return None
        self._next_look_s = now_s + _LOOK_S
        if self._attempt is None:
            self._attempt = self._rank_process.joined_attempt()
        if self._attempt is None:
            return None
        folder = self._rank_process.run_dir / "exit" / str(self._attempt)
        try:
            # One listing: the mark is older than any verdict of a rank that has trained.
            names = os.listdir(folder)
        except OSError:
            return None
        self._next_look_s += _LOOK_S_PER_FILE * len(names)
        if _TRAINED in names or f"{self._rank_process.rank}.json" in names:
            self._is_settled = True
            return None
        ended = self._first_ended(folder, names)
        if ended is not None and self._seen_s is None:
            self._seen_s = now_s
        return ended if self._seen_s is not None and now_s - self._seen_s >= self._grace_s else None

    def _first_ended(self, folder: Path, names: list[str]) -> Ending | None:
        for rank in sorted(int(name.removesuffix(".json")) for name in names if name.removesuffix(".json").isdigit()):
            content = read_verdict(folder / f"{rank}.json")
            if content is not None and content["verdict"] != Verdict.COMPLETE:
                words = str(content.get("reason"))[:200]
                return Ending(
                    Verdict(content["verdict"]),
                    f"rank {rank} had ended before the first step ({words}), and this waited",
                )
        return None
