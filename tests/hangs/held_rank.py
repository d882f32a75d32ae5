"""train.py, of which one rank is held: ``HELD`` is JSON with ``rank``, ``phase``, ``step`` and ``kind``.

What holds it strikes when it says that it enters the phase, in the code that does.
"""

import json
import os
import sys
from typing import Any

from scaletrain import train
from scaletrain.launch.hang.heartbeat import Heartbeat, Phase
from tests.launch.hang.collective import strike


def install(held: dict[str, Any]) -> None:
    """Has the rank of this process held, if it is the one."""
    if held.get("rank") not in (None, int(os.environ["RANK"])):
        return
    write = Heartbeat._write
    done: list[bool] = []

    def write_and_stay(beat: Heartbeat, phase: Phase, step: int | None = None, micro_step: int = 0) -> None:
        write(beat, phase, step, micro_step)
        if phase.label == held["phase"] and beat._step >= held["step"] and not done:
            done.append(True)
            strike(held["kind"])

    Heartbeat._write = write_and_stay  # type: ignore[method-assign]


if __name__ == "__main__":
    install(json.loads(os.environ["HELD"]))
    sys.exit(train.main(sys.argv[1:]))
