"""One rank of the all-reduce that tells whether nodes reach each other, and how fast; ``exchange.py`` starts it."""

import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from scaletrain.preflight.exchange import OUT_OF_TIME, ranks_of_node

_LEAVE_S = 2.0
_NUMBERS = 1024
_OFFSETS = 64
"""Sums of whole numbers below 1024 + 64 stay below 2**24, which fp32 holds without rounding, on up to 15,000 ranks."""


def run_rank(task: Mapping[str, Any]) -> int:
    """Takes part in the all-reduce.

    Args:
        task: As for ``run_node``, with ``local``, the rank's place on its node, and ``report``, the descriptor of the
            pipe that it tells ``gb_per_s``, ``correct`` and ``seconds`` through.

    Returns:
        0, or 1 where sums are wrong.
    """
    limit_s = float(task["limit_s"])
    ending = threading.Timer(limit_s + _LEAVE_S, os._exit, (OUT_OF_TIME,))  # the rank may be stuck in C code
    ending.daemon = True
    ending.start()
    gpus, local = int(task["gpus"]), int(task["local"])
    on_node = ranks_of_node(task)
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
    told = {
        "gb_per_s": bus_bandwidth(world_size, mib * 2**20, seconds) / 1e9,
        "correct": is_correct,
        "seconds": seconds,
    }
    os.write(int(task["report"]), json.dumps(told).encode())
    dist.barrier()  # the first rank holds the store of addresses for all
    dist.destroy_process_group()
    return int(not is_correct)


def bus_bandwidth(world_size: int, size: int, seconds: float) -> float:
    """What a link carries in an all-reduce, whatever the number of ranks: 2 (n - 1) / n * bytes / time.

    Source: NVIDIA nccl-tests, doc/PERFORMANCE.md, bus bandwidth of AllReduce.

    Args:
        world_size: Number of ranks, n.
        size: Bytes that each rank gives.
        seconds: Time of one all-reduce.

    Returns:
        Bytes per second.
    """
    return 2 * (world_size - 1) / world_size * size / seconds


def _fits(device: torch.device, seconds: float, times: int, limit_s: float) -> bool:
    """Whether a larger all-reduce would end in time, so that a slow connection is told apart from a silent one."""
    expected_s = torch.tensor(2 * times * seconds, device=device)
    dist.all_reduce(expected_s, op=dist.ReduceOp.MAX)
    return bool(expected_s < limit_s / 2)


def _reduce(device: torch.device, rank: int, world_size: int, mib: int, repeats: int) -> tuple[float, bool]:
    """The median time of an all-reduce, and whether all sums are right."""
    numbers = torch.arange(mib * 2**20 // 4, device=device, dtype=torch.float32) % _NUMBERS
    expected = numbers * world_size + sum(other % _OFFSETS for other in range(world_size))
    dist.all_reduce(torch.ones(1, device=device))  # connects, which is not what is measured
    is_correct, taken_s = True, []
    for _ in range(repeats):
        values = numbers + rank % _OFFSETS
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
