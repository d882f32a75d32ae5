"""A rank without a model: ``RUN_DIR LIMITS FAULT``; it beats as a training does, until a fault befalls it.

``FAULT`` is JSON: ``rank``, ``phase``, ``step`` and ``kind``, or ``slow`` for how many seconds a phase lasts once.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from scaletrain.launch.hang.heartbeat import Heartbeat, Phase
from scaletrain.launch.hang.limits import HangLimits
from scaletrain.launch.hang.start import watch_this_process
from scaletrain.launch.keeper import start_keeper
from scaletrain.launch.processes import die_with_launcher
from scaletrain.launch.run_dir import RunDirectory
from scaletrain.launch.siblings import mark_trained
from scaletrain.launch.verdicts import Verdict, write_verdict
from scaletrain.ranks import Ranks, from_environment
from tests.launch.hang.collective import collective_in, strike

STEP = (Phase.DATA, Phase.AGREE, Phase.FORWARD, Phase.BACKWARD, Phase.UPDATE, Phase.CALLBACKS, Phase.EVAL, Phase.SAVE)
MEETS = {Phase.AGREE, Phase.BACKWARD, Phase.UPDATE, Phase.EVAL, Phase.SAVE}  # phases with a collective in them


class Rank:
    """The loop."""

    def __init__(self, folder: Path, ranks: Ranks, beat: Heartbeat, fault: dict[str, object]) -> None:
        self._ranks, self._beat, self._fault = ranks, beat, fault
        self._run_dir, self._folder = folder, folder / "met"
        self._folder.mkdir(exist_ok=True)
        self._all_reduce: Callable[[Path, str, int, int], None] = collective_in(folder)

    def train(self, steps: int) -> None:
        for step in range(1, steps + 1):
            for phase in STEP:
                self._beat.enter(phase, step)
                self._do(phase, step)
            self._beat.agree(self._beat.longest_s)
        self._beat.enter(Phase.END)
        self._do(Phase.END, steps)

    def _do(self, phase: Phase, step: int) -> None:
        fault = self._fault
        if (phase.label, step) == (fault.get("phase"), fault.get("step")) and fault.get("rank") in (
            self._ranks.rank,
            None,
        ):
            if "slow" in fault:
                time.sleep(float(str(fault["slow"])))
            elif fault["kind"] == "network":  # the message of this rank is lost on its way
                self._all_reduce(self._folder, "lost-message", self._ranks.rank, self._ranks.world_size + 1)
            else:
                strike(str(fault["kind"]), self._run_dir)
        if phase in MEETS:
            self._all_reduce(self._folder, f"{step}-{phase.label}", self._ranks.rank, self._ranks.world_size)


def main() -> None:
    """Starts as the entry point does."""
    die_with_launcher()
    run_dir, limits, fault = Path(sys.argv[1]), HangLimits(**json.loads(sys.argv[2])), json.loads(sys.argv[3])
    ranks = from_environment()
    beat, watched = watch_this_process(limits, ranks, os.environ)
    watched = replace(watched, py_spy="" if fault.get("without_py_spy") else watched.py_spy)
    run = RunDirectory(run_dir)
    start_keeper(run_dir, ranks.rank, grace_s=3, watched=watched)
    if fault.get("phase") == "start" and fault.get("rank") == ranks.rank:
        strike(str(fault["kind"]))
    if ranks.is_main:
        run.claim()
    while not (run_dir / "exit" / "1" / "launch.json").exists():
        time.sleep(0.01)
    run.join(1, ranks.rank)
    if ranks.is_main:
        mark_trained(run_dir, 1)
    Rank(run_dir, ranks, beat, fault).train(int(fault.get("steps", 4)))
    write_verdict(run_dir, 1, ranks.rank, Verdict.COMPLETE, "all steps are done")


if __name__ == "__main__":
    main()
