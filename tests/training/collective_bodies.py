"""What ranks do whose peers stand still."""

import time
from datetime import timedelta

import torch
import torch.distributed as dist
from deepspeed.utils import groups
from torch.distributed import distributed_c10d

from scaletrain.config.batch_plan import BatchPlan
from scaletrain.training.processes import limit_collectives, naming_the_limit
from tests.engine import bodies
from tests.engine.bodies import GLOBAL_BATCH, Case

STANDSTILL_S = 6.0


def limits(stage: int, limit_s: float) -> tuple[list[timedelta], list[timedelta]]:
    """The longest waits of all groups that an engine works with, before and after they are limited."""
    bodies.build_engine(Case(stage=stage), BatchPlan(GLOBAL_BATCH, 2, dist.get_world_size()))
    before = _waits()
    limit_collectives(limit_s)
    after = _waits()
    limit_collectives(1800)  # the ranks live on
    return before, after


def wait_for_a_rank_that_stands_still(limit_s: float) -> float:
    """Rank 0 waits in DeepSpeed's own group for rank 1; returns how long it waited, in seconds."""
    bodies.build_engine(Case(stage=1), BatchPlan(GLOBAL_BATCH, 2, dist.get_world_size()))
    limit_collectives(limit_s)
    begin_s = time.monotonic()
    if dist.get_rank() == 1:
        time.sleep(STANDSTILL_S)
        return 0.0
    with naming_the_limit(limit_s):
        dist.all_reduce(torch.ones(1), group=groups._get_data_parallel_group())
    return time.monotonic() - begin_s


def _waits() -> list[timedelta]:
    cpu = torch.device("cpu")
    return [group._get_backend(cpu).options._timeout for group in distributed_c10d._world.pg_map]
