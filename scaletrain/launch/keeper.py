"""Starts the process beside each rank that ends it with its launcher and writes its verdict where it cannot."""

import json
import multiprocessing.util
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import scaletrain
from scaletrain.errors import ConfigError
from scaletrain.launch.attempts import RankProcess, launch_of_this_process
from scaletrain.launch.hang.limits import Watched
from scaletrain.launch.processes import launchers_above, this_process

GRACE_S = 20.0
"""Time in which a rank may save after the command that started it was ended, before it is killed."""
_START_TIMEOUT_S = 30.0


def start_keeper(
    run_dir: Path, rank: int, grace_s: float = GRACE_S, end_s: float | None = None, watched: Watched | None = None
) -> int:
    """Starts a keeper for this process, and returns when it watches.

    The keeper is no child of this process and in no session with it: a launcher that kills whole process
    trees does not meet it. It holds no standard stream, ignores signals that ask a run to stop, and ends soon
    after this process has.

    - This process ends without a verdict: the keeper writes ``crash`` for it.
    - The launcher that started it is gone: the keeper kills it (the kernel does too, see ``die_with_launcher``).
    - The command above that launcher is gone: this process gets SIGUSR1, after ``grace_s`` SIGKILL, and the
      launcher is killed where it did not end by then.
    - The job is about to end: this process gets SIGKILL, the verdict ``requeue``, and a line in its standard error.
    - Another rank of the attempt ended before the first step, and this one waits for it: half of ``grace_s`` later it
      is ended with the same verdict.
    - This process stays in a phase for too long, or waits for one that does: a report is written, and it is ended with
      the verdict ``hang``. See ``hang``.
    - Processes that this one leaves behind, such as DataLoader workers, are killed, and the folder of their
      sockets goes.
    - The lease of the run directory is refreshed while this process lives, if it is the owner.

    Args:
        run_dir: The run's folder; made where it is missing.
        rank: Global index of this process.
        grace_s: Seconds between SIGUSR1 and SIGKILL.
        end_s: When this process is ended, in Unix seconds; None for never.
        watched: How to see that this process hangs; None where nobody is to look.

    Returns:
        Process number of the keeper.

    Raises:
        ConfigError: The run directory cannot be made.
        RuntimeError: The keeper does not start.
    """
    folder = run_dir.absolute()
    try:
        (folder / "exit").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"run directory {run_dir} cannot be made: {error.strerror}; give another --run_dir, or permission there"
        ) from None
    task = {
        "rank": RankProcess(folder, rank, this_process(), launch_of_this_process()).to_json(),
        "launchers": [asdict(above) for above in launchers_above(os.getpid())],
        "grace_s": grace_s,
        "end_s": end_s,
        # Made here, so that all workers share it: the kernel does not take back what a killed process left on a disk.
        "sockets": multiprocessing.util.get_temp_dir(),
        "heartbeat": watched.to_json() if watched else None,
    }
    return _start(task, (watched.heartbeat, watched.stacks) if watched else ())


def _start(task: dict[str, Any], descriptors: Sequence[int]) -> int:
    # -S and -E leave site-packages and the environment's settings out: it starts in a fraction of the time.
    command = [sys.executable, "-S", "-E", "-m", "scaletrain.launch.keeper_process", json.dumps(task)]
    starting = subprocess.Popen(
        command,
        cwd=Path(scaletrain.__file__).resolve().parents[1],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
        pass_fds=tuple(descriptors),
    )
    try:
        printed, complaint = starting.communicate(timeout=_START_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        starting.kill()
        raise RuntimeError(f"the keeper process did not start within {_START_TIMEOUT_S:.0f} s") from None
    if starting.returncode != 0 or not printed.strip().isdigit():
        raise RuntimeError(f"the keeper process did not start: {complaint.strip() or printed.strip()}")
    return int(printed)
