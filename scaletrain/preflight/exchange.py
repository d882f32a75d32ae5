"""Whether nodes reach each other, and how fast: an all-reduce over all of them.

``python -m scaletrain.preflight.exchange JSON`` runs on each node, and starts a process for each of its GPUs. See
``run_node`` for the keys.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from scaletrain.files import replace_text
from scaletrain.lifetime import end_with

OUT_OF_TIME = 3
_LARGEST_REPORT = 2**16
_REAP_S = 5.0


def run_node(task: Mapping[str, Any]) -> int:
    """Runs this node's ranks, and ends them when one fails or their time is over.

    The result has ``host``, ``node_rank``, ``gb_per_s`` (bus bandwidth), ``seconds`` (of one all-reduce) and
    ``correct``; it is written where all ranks of this node have told theirs. The slowest rank counts.

    Args:
        task: ``node_rank``, ``nodes``, ``gpus`` of each (0: processes on the CPU, as many as ``ranks`` says, else one),
            ``master_addr``, ``master_port``, ``mib`` to reduce, ``repeats``, ``limit_s``, and ``result``, the file for
            this node's JSON.

    Returns:
        0, or another number where the all-reduce failed (1 for wrong sums) or took too long (3).
    """
    until_s = time.monotonic() + float(task["limit_s"])
    ranks: list[_Rank] = []
    try:
        ranks += [_Rank(task, local) for local in range(ranks_of_node(task))]
        code = _wait(ranks, until_s)
    finally:
        for rank in ranks:
            rank.process.kill()
    told = [rank.told() for rank in ranks]
    known = [one for one in told if one is not None]
    if len(known) == len(told):
        _write_result(Path(task["result"]), int(task["node_rank"]), known)
    return code


def ranks_of_node(task: Mapping[str, Any]) -> int:
    """Processes of each node, by the task of ``run_node``."""
    return int(task["gpus"]) or int(task.get("ranks", 1))


class _Rank:
    """One rank of this node; it tells its figures through a pipe, since NCCL may print to its standard output."""

    def __init__(self, task: Mapping[str, Any], local: int) -> None:
        self._reading, writing = os.pipe()
        os.set_blocking(self._reading, False)
        given = json.dumps({**task, "local": local, "report": writing})
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "scaletrain.preflight.all_reduce", given],
                stdin=subprocess.DEVNULL,
                pass_fds=(writing,),
                preexec_fn=partial(end_with, os.getpid()),
            )
        finally:
            os.close(writing)

    def told(self) -> dict[str, Any] | None:
        """What it has told; None where it has not. To be called once, after its end."""
        try:
            self.process.wait(_REAP_S)  # in a driver's call it may outlive even SIGKILL
            return dict(json.loads(os.read(self._reading, _LARGEST_REPORT)))
        except (subprocess.TimeoutExpired, OSError, ValueError):
            return None
        finally:
            os.close(self._reading)


def _wait(ranks: Sequence[_Rank], until_s: float) -> int:
    while time.monotonic() < until_s:
        codes = [rank.process.poll() for rank in ranks]
        failed = [code for code in codes if code]
        if failed:
            return failed[0] if failed[0] > 0 else 128 - failed[0]
        if None not in codes:
            return 0
        time.sleep(0.02)
    return OUT_OF_TIME


def _write_result(path: Path, node_rank: int, told: Sequence[Mapping[str, Any]]) -> None:
    result = {
        "host": socket.gethostname(),
        "node_rank": node_rank,
        "gb_per_s": min(one["gb_per_s"] for one in told),
        "correct": all(one["correct"] for one in told),
        "seconds": max(one["seconds"] for one in told),
    }
    replace_text(path, json.dumps(result) + "\n")


def _leave(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _leave)
    sys.exit(run_node(json.loads(sys.argv[1])))
