"""Whether nodes reach each other, and how fast: an all-reduce over all of them.

``python -m scaletrain.preflight.exchange JSON`` runs on each node, and starts a process for each of its GPUs.
"""

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

_OUT_OF_TIME = 3


def run_node(task: Mapping[str, Any]) -> int:
    """Runs this node's ranks, and ends them when their time is over.

    Args:
        task: ``node_rank``, ``nodes``, ``gpus`` of each, ``master_addr``, ``master_port``, ``mib`` to reduce,
            ``repeats``, ``limit_s``, and ``result``, the file for this node's JSON.

    Returns:
        0, or another number where the all-reduce failed or took too long.
    """
    ranks = max(1, int(task["gpus"]))
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "scaletrain.preflight.all_reduce", json.dumps({**task, "local": local})]
        )
        for local in range(ranks)
    ]
    until_s = time.monotonic() + float(task["limit_s"])
    try:
        codes = [process.wait(max(0.0, until_s - time.monotonic())) for process in processes]
        return max(codes, key=abs)
    except subprocess.TimeoutExpired:
        return _OUT_OF_TIME
    finally:
        for process in processes:
            process.kill()
            process.wait()


if __name__ == "__main__":
    sys.exit(run_node(json.loads(sys.argv[1])))
