"""What it costs to look for stragglers: in each step, and at the end of a window; four ranks of a tiny model.

    python benchmarks/stragglers.py --rounds 9

Times of a step and of judging are CPU times, those of what ranks do together are wall times.
"""

import os
import random
import socket
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fire
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conditions import print_conditions

from scaletrain.config.batch_plan import BatchPlan
from scaletrain.config.monitor_schema import StragglersConfig
from scaletrain.config.schema import ModelConfig, OptimConfig, RunConfig, TrainConfig
from scaletrain.engine.compute_clock import open_clock
from scaletrain.launch.hang.heartbeat import Heartbeat
from scaletrain.monitors.rank_heat_map import RankHeatMap
from scaletrain.monitors.stragglers import RankTimes, StragglerJudge
from scaletrain.protocols import TrainingState
from scaletrain.ranks import from_environment
from scaletrain.tasks.causal_lm import CausalLM
from scaletrain.training.build import build_engine
from scaletrain.training.processes import connect
from scaletrain.training.stragglers import Stragglers

RANKS, STEPS, MANY = 4, 2000, 1024
METRICS = {"perf/step_time_s": 0.1, "perf/data_wait_s": 0.001}
MODEL = ModelConfig(vocab_size=320, d_model=32, n_layers=1, n_heads=2, max_seq_len=32)


def cpu_us(repeats: int, do: Callable[[], object]) -> float:
    """CPU time of one call, in microseconds."""
    begin_s = time.thread_time()
    for _ in range(repeats):
        do()
    return 1e6 * (time.thread_time() - begin_s) / repeats


def wall_us(do: Callable[[], object]) -> float:
    """Wall time of one call that all ranks make together, in microseconds."""
    dist.barrier()
    begin_s = time.perf_counter()
    do()
    return 1e6 * (time.perf_counter() - begin_s)


def clocked_step() -> Callable[[], object]:
    """What the clock does in a step of four micro steps."""
    clock = open_clock(torch.device("cpu"), 2)

    def step() -> None:
        clock.begin_step()
        for _ in range(4):
            clock.begin_forward()
            clock.end_forward()
        clock.end_step()
        clock.read_s()

    return step


def judged(world_size: int) -> Callable[[], object]:
    """Judges a window of equal ranks."""
    judge, source = StragglerJudge([f"n{rank // 8}" for rank in range(world_size)], 0.05), random.Random(7)
    window = [RankTimes(1.0, 0.001, 0.5 * source.gauss(1, 0.005), [0.5] * 5, 0.0002) for _ in range(world_size)]
    return lambda: judge.judge(window)


def drawn(world_size: int) -> Callable[[], object]:
    """Draws 80 windows."""
    heat_map = RankHeatMap(world_size)
    for step in range(80):
        heat_map.add(step, {"compute": [0.0] * world_size})
    return heat_map.draw


def measure(rank: int, port: int, rounds: int) -> None:
    """One rank; rank 0 prints."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(RANKS), LOCAL_WORLD_SIZE=str(RANKS))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), DS_ACCELERATOR="cpu")
    ranks = from_environment()
    connect(ranks, deterministic=False, collective_timeout_s=600)
    train = TrainConfig(max_seq_len=32, global_batch_size=8, micro_batch_size=2, precision="fp32")
    config = RunConfig(model=MODEL, train=train, optim=OptimConfig())
    join_loss = partial(CausalLM, loss=config.loss)
    engine = build_engine(config, BatchPlan(8, 2, RANKS), 1, join_loss, Heartbeat())
    callback = Stragglers(engine, ranks, StragglersConfig(every_steps=10**9), 10, lambda slow: None)
    run: Any = SimpleNamespace(state=TrainingState(), is_main=ranks.is_main)
    callback.on_start(run)
    measured: dict[str, Callable[[], float]] = {
        "clock, in each step": lambda: cpu_us(STEPS, clocked_step()),
        "callback, in each step": lambda: cpu_us(STEPS, lambda: callback.on_step_end(run, dict(METRICS))),
        "two pings, in each window": lambda: wall_us(lambda: engine.round_trip_s(1)),
        "gathering, in each window": lambda: wall_us(lambda: engine.gather_numbers([0.5] * 9)),
        f"judging {RANKS} ranks": lambda: cpu_us(20, judged(RANKS)),
        f"judging {MANY} ranks": lambda: cpu_us(2, judged(MANY)),
        f"a picture of {RANKS} ranks": lambda: cpu_us(2, drawn(RANKS)),
        f"a picture of {MANY} ranks": lambda: cpu_us(1, drawn(MANY)),
    }
    found: dict[str, list[float]] = {name: [] for name in measured}
    for _ in range(rounds):
        for name, take in measured.items():
            found[name].append(take())
    if rank == 0:
        print("\n| what | median, us | smallest | largest |\n|---|---|---|---|")
        for name, values in found.items():
            print(f"| {name} | {statistics.median(values):.1f} | {min(values):.1f} | {max(values):.1f} |")
    dist.barrier()


def main(*, rounds: int = 9) -> None:
    """Measures.

    Args:
        rounds: Of all that is measured, in turns.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.chdir(Path(__file__).parents[1])
    print_conditions("torch", "deepspeed")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = int(listener.getsockname()[1])
    mp.spawn(measure, (port, rounds), nprocs=RANKS)


if __name__ == "__main__":
    fire.Fire(main)
