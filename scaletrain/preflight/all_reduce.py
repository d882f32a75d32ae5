"""One rank of the all-reduce that checks the connections between nodes; see ``exchange``."""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

_OUT_OF_TIME = 3
_LEAVE_S = 2.0


def run_rank(task: Mapping[str, Any]) -> int:
    """Takes part in the all-reduce; the first rank of each node writes the result.

    Args:
        task: As for ``exchange.run_node``, and ``local``, the rank's place on its node.

    Returns:
        0, or 1 where the sums are wrong.
    """
    limit_s = float(task["limit_s"])
    ending = threading.Timer(limit_s + _LEAVE_S, os._exit, (_OUT_OF_TIME,))  # a rank may be stuck in C code
    ending.daemon = True
    ending.start()
    gpus, local = int(task["gpus"]), int(task["local"])
    on_node = max(1, gpus)
    rank, world_size = int(task["node_rank"]) * on_node + local, int(task["nodes"]) * on_node
    device = torch.device("cuda", local) if gpus else torch.device("cpu")
    if gpus:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if gpus else "gloo",
        init_method=f"tcp://{task['master_addr']}:{task['master_port']}",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=limit_s),
    )
    mib = 1
    seconds, is_correct = _reduce(device, rank, world_size, mib, 1)
    if _fits(device, seconds, int(task["mib"]) * int(task["repeats"]), limit_s):
        mib = int(task["mib"])
        seconds, is_large_correct = _reduce(device, rank, world_size, mib, int(task["repeats"]))
        is_correct = is_correct and is_large_correct
    if local == 0:
        size = mib * 2**20
        # Bus bandwidth of an all-reduce, 2 (n - 1) / n * bytes / time: what a link must carry, whatever n is.
        # Source: NVIDIA nccl-tests, doc/PERFORMANCE.md.
        gb_per_s = 2 * (world_size - 1) / world_size * size / seconds / 1e9
        told = {
            "host": socket.gethostname(),
            "node_rank": task["node_rank"],
            "gb_per_s": gb_per_s,
            "correct": is_correct,
            "seconds": seconds,
        }
        draft = Path(f"{task['result']}.draft")
        draft.write_text(json.dumps(told) + "\n")
        os.replace(draft, task["result"])
    dist.barrier()
    dist.destroy_process_group()
    return int(not is_correct)


def _fits(device: torch.device, seconds: float, times: int, limit_s: float) -> bool:
    """Whether a larger all-reduce would end in time, so that a slow connection is told apart from a silent one."""
    expected_s = torch.tensor(2 * times * seconds, device=device)
    dist.all_reduce(expected_s, op=dist.ReduceOp.MAX)
    return bool(expected_s < limit_s / 2)


def _reduce(device: torch.device, rank: int, world_size: int, mib: int, repeats: int) -> tuple[float, bool]:
    """The time of one all-reduce, and whether all sums are right: whole numbers, which fp32 adds without rounding."""
    numbers = torch.arange(mib * 2**20 // 4, device=device, dtype=torch.float32) % 1024
    expected = numbers * world_size + world_size * (world_size - 1) / 2
    dist.all_reduce(torch.ones(1, device=device))  # connects, which is not what is measured
    is_correct, taken_s = True, []
    for _ in range(repeats):
        values = numbers + rank
        dist.barrier()
        _finish(device)
        started_s = time.monotonic()
        dist.all_reduce(values)
        _finish(device)
        taken_s.append(time.monotonic() - started_s)
        is_correct = is_correct and bool(torch.equal(values, expected))
    return sorted(taken_s)[len(taken_s) // 2], is_correct


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    sys.exit(run_rank(json.loads(sys.argv[1])))
