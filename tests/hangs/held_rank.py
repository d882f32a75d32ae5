"""train.py, of which one rank is held: ``HELD`` is JSON with ``rank``, ``phase``, ``step`` and ``kind``.

What holds it strikes when it says that it enters the phase, in the code that does; in ``start`` when it has joined the
run. ``struck`` in the current folder tells when that was.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from scaletrain import train
from scaletrain.launch.hang.heartbeat import Heartbeat, Phase
from scaletrain.launch.run_dir import RunDirectory
from tests.launch.hang.collective import strike

STRUCK = Path("struck")


def install(held: dict[str, Any]) -> None:
    """Has the rank of this process held, if it is the one."""
    if held["rank"] != int(os.environ["RANK"]):
        return
    if held["phase"] == "start":
        hold_in_start(held["kind"])
    else:
        hold_in_phase(held)


def hold(kind: str) -> None:
    STRUCK.write_text(str(time.time()))
    strike(kind)


def hold_in_start(kind: str) -> None:
    join = RunDirectory.join

    def join_and_stay(folder: RunDirectory, attempt: int, rank: int) -> None:
        join(folder, attempt, rank)
        hold(kind)

    patch.object(RunDirectory, "join", join_and_stay).start()


def hold_in_phase(held: dict[str, Any]) -> None:
    write = Heartbeat._write

    def write_and_stay(beat: Heartbeat, phase: Phase, step: int | None = None, micro_step: int = 0) -> None:
        write(beat, phase, step, micro_step)
        if phase.label == held["phase"] and beat._step >= held["step"] and not STRUCK.exists():
            hold(held["kind"])

    patch.object(Heartbeat, "_write", write_and_stay).start()


if __name__ == "__main__":
    install(json.loads(os.environ["HELD"]))
    sys.exit(train.main(sys.argv[1:]))
