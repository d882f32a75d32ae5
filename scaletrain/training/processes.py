"""Connects the ranks of a run, and settles what each process computes with."""

import contextlib
import os
import re
import warnings
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from scaletrain.config.schema import TrainConfig
from scaletrain.hardware.host import describe_host
from scaletrain.hardware.peaks import peak_flops_per_s
from scaletrain.launch.processes import free_port
from scaletrain.monitors.throughput import measure_matmul_flops_per_s
from scaletrain.ranks import Ranks

# What gloo and NCCL say of a collective, and torch's store of a meeting, that another rank did not come to in time.
_COLLECTIVE_WAITED = re.compile(
    r"Timed out waiting \d+ ?ms|Application timeout caused pair closure|Watchdog caught collective operation timeout"
)
_MEETING_WAITED = re.compile(r"[Tt]imed out after \d+ ?(ms|seconds)|[Ww]ait timeout after \d+ ?ms")


class CollectiveTimeoutError(RuntimeError):
    """Another rank was waited for longer than ``train.collective_timeout_s``; nobody knows what holds it."""


@contextlib.contextmanager
def naming_the_limit(collective_timeout_s: float) -> Iterator[None]:
    """Around all that waits for other ranks: where one is waited for too long, says which limit that was.

    Args:
        collective_timeout_s: As for ``connect``.

    Raises:
        CollectiveTimeoutError: In place of what torch raised, which is its cause.
    """
    limit = f"train.collective_timeout_s = {collective_timeout_s:g} s"
    try:
        yield
    except RuntimeError as error:
        if _COLLECTIVE_WAITED.search(str(error)):
            raise CollectiveTimeoutError(f"a collective waited longer than {limit} for another rank") from error
        if _MEETING_WAITED.search(str(error)):
            raise CollectiveTimeoutError(f"another rank did not connect within {limit}") from error
        raise


def connect(ranks: Ranks, deterministic: bool, collective_timeout_s: float) -> None:
    """Connects this process to the others of the run, over NCCL on GPUs and gloo without.

    Args:
        ranks: The place of this process.
        deterministic: Whether GPU kernels must give the same bits each time.
        collective_timeout_s: Longest time, in seconds, for which a collective waits for another rank, and this one for
            the others to connect.
    """
    if deterministic:
        # cuBLAS reads it when it is first used.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    if torch.cuda.is_available():
        torch.cuda.set_device(ranks.local_rank)
        backend = "cpu:gloo,cuda:nccl"
    else:
        backend = "gloo"
        # Said before deepspeed is imported, which otherwise warns that it found no accelerator.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        if "OMP_NUM_THREADS" not in os.environ:
            # Ranks that all take every core slow each other down.
            torch.set_num_threads(max(1, describe_host().cores // ranks.local_world_size))
    if ranks.world_size == 1:
        for key, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}.items():
            os.environ.setdefault(key, str(value))
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", str(free_port()))
    # DeepSpeed calls functions that torch 2.13 renames: nothing a user could act on.
    warnings.filterwarnings("ignore", category=FutureWarning, message=".*torch.distributed.*is deprecated")
    timeout = timedelta(seconds=collective_timeout_s)
    dist.init_process_group(backend, rank=ranks.rank, world_size=ranks.world_size, timeout=timeout)


def limit_collectives(collective_timeout_s: float) -> None:
    """Sets the longest wait of all groups that there are; a group does not take over that of the first one.

    DeepSpeed makes groups of its own, with torch's default of 10 (NCCL) or 30 minutes (gloo), and no setting for that.

    Args:
        collective_timeout_s: As for ``connect``.
    """
    for group in list(distributed_c10d._world.pg_map):
        if not distributed_c10d._rank_not_in_group(group):
            distributed_c10d._set_pg_timeout(timedelta(seconds=collective_timeout_s), group)


def disconnect() -> None:
    """Closes the connections; not after an error, when other ranks may never answer."""
    dist.destroy_process_group()


def find_peak(train: TrainConfig) -> float | None:
    """Highest rate of this rank's device; every rank calls it.

    Args:
        train: Gives the precision.

    Returns:
        FLOP/s: the vendor's figure for a known GPU, None for an unknown one, and on a CPU what a matrix product reaches
        now, measured by all ranks at once, since they share the cores.
    """
    if torch.cuda.is_available():
        return peak_flops_per_s(torch.cuda.get_device_name(), train.precision)
    dist.barrier()
    return measure_matmul_flops_per_s(train.precision)


def share_attempt(attempt: int | None) -> int:
    """Tells all ranks the number of this start.

    Args:
        attempt: The number on rank 0; ignored elsewhere.

    Returns:
        Rank 0's number.
    """
    shared: list[Any] = [attempt]
    dist.broadcast_object_list(shared, src=0)
    return int(shared[0])
