"""Has this process watched for hangs: makes the memory that its keeper looks at."""

import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from scaletrain.launch.hang.flight_recorder import DUMP_VARIABLES, PIPE_VARIABLE, variables
from scaletrain.launch.hang.heartbeat import Heartbeat, shared_memory
from scaletrain.launch.hang.limits import HangLimits, Watched
from scaletrain.launch.hang.stacks import offer_stacks
from scaletrain.ranks import Ranks

_SHARE_OF_COLLECTIVES = 0.75
"""Of the time limit of collectives: a report takes less than the rest of it."""
_SHORTEST_SHARE_S = 90.0
"""Three quarters of two minutes: the rest of a shorter limit is no time to take stacks in; collectives end first."""
_RECORDS = 2000  # collectives that torch's flight recorder keeps


def limits_of(factor: float, first_limit_s: float, min_limit_s: float, collective_timeout_s: float) -> HangLimits:
    """The limits of a run.

    Args:
        factor: A phase may last this many times the longest seen.
        first_limit_s: Limit of a phase that has not been seen to end, in seconds.
        min_limit_s: No limit of a phase that was seen to end is shorter, in seconds.
        collective_timeout_s: When a collective ends by itself. Three quarters of it count in place of a longer
            ``min_limit_s``, so that who lowers it is still told who holds the others up; but not for a phase that
            has not been seen to end: a start that loads much, or compiles, may take longer than one collective.
    """
    most_s = max(_SHARE_OF_COLLECTIVES * collective_timeout_s, _SHORTEST_SHARE_S)
    first_s = min(first_limit_s, max(most_s, min_limit_s))
    return HangLimits(factor, first_s, min(min_limit_s, most_s), most_s)


def watch_this_process(
    limits: HangLimits, ranks: Ranks, environment: MutableMapping[str, str]
) -> tuple[Heartbeat, Watched]:
    """Makes the heartbeat of this process, and what its keeper must know of it.

    Args:
        limits: How long a phase may last.
        ranks: The place of this process.
        environment: Says which GPUs it has; on a machine with GPUs it gets the settings of torch's flight recorder.

    Returns:
        Both. The heartbeat's descriptor may be closed once the keeper has started.
    """
    memory = shared_memory()
    gpu = _gpu(ranks.local_rank, environment)
    dumps = prepare_dumps(environment) if gpu else ""
    watched = Watched(memory, offer_stacks(), limits, ranks.world_size, gpu, _find_py_spy(), dumps)
    return Heartbeat(memory), watched


def prepare_dumps(environment: MutableMapping[str, str]) -> str:
    """Has NCCL record its collectives, and dump them when it is asked; before the ranks are connected.

    Args:
        environment: Of this process, which gets torch's variables; a user's own are left as they are.

    Returns:
        Folder for pipe and dump, which the keeper removes; empty where the user has set the recorder up.
    """
    if any(name in environment for name in (PIPE_VARIABLE, *DUMP_VARIABLES)):
        return ""
    folder = tempfile.mkdtemp(prefix="scaletrain-collectives-")
    for name, value in variables(folder, _RECORDS).items():
        environment.setdefault(name, value)
    return folder


def _gpu(local_rank: int, environment: Mapping[str, str]) -> str:
    if not os.path.exists("/dev/nvidiactl"):
        return ""
    visible = [one for one in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]
    return f"GPU {visible[local_rank] if local_rank < len(visible) else local_rank}"


def _find_py_spy() -> str:
    """The program, beside the interpreter or on the path."""
    beside = Path(sys.executable).with_name("py-spy")
    return str(beside) if beside.exists() else shutil.which("py-spy") or ""
