"""What stands for a collective, and faults: a small program's ranks wait for each other as those of a training do.

``all_reduce`` is written into a file of torch's name, by which a report knows that a rank waits in a collective.
"""

import ctypes
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

COLLECTIVE = """
import os, time
from pathlib import Path

def all_reduce(folder, number, rank, world_size):
    (Path(folder) / f"met-{number}-{rank}").touch()
    while not all((Path(folder) / f"met-{number}-{other}").exists() for other in range(world_size)):
        time.sleep(0.01)
"""


def collective_in(folder: Path) -> Callable[[Path, str, int, int], None]:
    """Makes the collective as a module in a folder."""
    path = folder / "torch" / "distributed" / "distributed_c10d.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{os.getpid()}.py")
    draft.write_text(COLLECTIVE)
    os.replace(draft, path)
    names: dict[str, Callable[[Path, str, int, int], None]] = {}
    exec(compile(COLLECTIVE, str(path), "exec"), names)
    return names["all_reduce"]


def strike(fault: str, run_dir: Path | None = None) -> None:
    """Has a fault befall this process, of the run in a folder."""
    if fault == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "python":
        while True:
            time.sleep(0.001)
    elif fault == "spins":
        while True:
            pass
    elif fault == "gil":
        while True:  # a signal that has a handler, such as the one for stacks, ends a pause
            ctypes.PyDLL(None).pause()  # a call through PyDLL keeps the interpreter's lock
    elif fault == "regex":
        re.match("(a+)+$", "a" * 64 + "b")
    elif fault == "until the report" and run_dir is not None:
        while not (run_dir / "exit" / "1" / "hang.json").exists():
            time.sleep(0.01)  # a report is begun by another process: there is only its file to wait for
    elif fault == "worker":  # one that a rank waits for, such as one of its DataLoader's
        if (worker := os.fork()) == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
        os.waitpid(worker, 0)
    elif fault == "slow":
        time.sleep(12)  # longer than the least limit of the trials
    elif fault == "leaves":
        sys.exit(3)
    else:
        raise ValueError(fault)
