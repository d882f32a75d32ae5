"""What a checkpoint costs: how long training stands still for it, beside a plain write of the same bytes.

Two ranks with ZeRO-1 in bf16 and about 100 million parameters. All variants take turns in one process a rank.

    python benchmarks/checkpoints.py --rounds 5
    python benchmarks/checkpoints.py --starts 3        # time to the first step, cold and resumed
"""

import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import fire
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conditions import print_conditions

from scaletrain.checkpoint.retention import Retention
from scaletrain.config.batch_plan import BatchPlan
from scaletrain.config.schema import ModelConfig, OptimConfig, RunConfig, TrainConfig
from scaletrain.corpus.embedded import prepare_python_stdlib
from scaletrain.data.rows import MicroBatch
from scaletrain.engine.engine import Engine
from scaletrain.launch.events import read_events
from scaletrain.launch.hang.heartbeat import Heartbeat
from scaletrain.monitors.jsonl_writer import read_metrics
from scaletrain.ranks import from_environment
from scaletrain.tasks.causal_lm import CausalLM
from scaletrain.training.build import build_engine
from scaletrain.training.processes import connect
from scaletrain.training.saving import Outcome, Saver
from scaletrain.training.tiers import Tier

ROOT = Path(__file__).parents[1]
RANKS = 2
MODEL = ModelConfig(vocab_size=32768, d_model=768, n_layers=10, n_heads=12, max_seq_len=128)
LAUNCH = [sys.executable, str(ROOT / "scaletrain" / "train.py")]


def micro_batch(rank: int, step: int) -> MicroBatch:
    """A micro batch of random tokens."""
    generator = torch.Generator().manual_seed(step * RANKS + rank)
    tokens = torch.randint(MODEL.vocab_size, (4, 129), generator=generator)
    inputs = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:].contiguous(), "documents": None, "positions": None}
    sources, sequences = torch.zeros(4, dtype=torch.int64), torch.arange(4)
    return MicroBatch(inputs=inputs, targets=torch.full((4,), 128), sources=sources, sequences=sequences, checksum=0)


class Rounds:
    """The variants, on one rank."""

    beside_s: list[float]

    def __init__(self, folder: Path) -> None:
        train = TrainConfig(max_seq_len=128, global_batch_size=8, micro_batch_size=4, precision="bf16")
        config = RunConfig(model=MODEL, train=train, optim=OptimConfig())
        self.folder = folder
        self.beside_s = []
        join_loss = partial(CausalLM, loss=config.loss)
        self.engine: Engine = build_engine(config, BatchPlan(8, 4, RANKS), 1, join_loss, Heartbeat())
        self.steps = 0
        self.savers = {name: Saver(self.engine, name == "background", []) for name in ("background", "foreground")}
        for _ in range(3):
            self.step()
        # As many bytes as this rank's part of a checkpoint, from memory that was touched before.
        outcome = self.save("background")
        shares: list[Any] = [None] * RANKS
        own = sum(p.stat().st_size for p in outcome.folder.glob(f"*rank_{dist.get_rank()}_*"))
        if dist.get_rank() == 0:
            own += (outcome.folder / "mp_rank_00_model_states.pt").stat().st_size
        dist.all_gather_object(shares, own)
        self.total_bytes = sum(shares)
        self.own_bytes = torch.ones(own, dtype=torch.uint8).numpy().data

    def step(self) -> float:
        """Seconds of one training step."""
        start_s = time.perf_counter()
        batch = [micro_batch(dist.get_rank(), self.steps)]
        self.engine.train_step(batch, self.engine.agree(batch, ()).targets, self.steps, 1e-4)
        self.steps += 1
        return time.perf_counter() - start_s

    def save(self, name: str) -> Outcome:
        """Saves, with steps beside it where it goes on beside them."""
        saver = self.savers[name]
        tier = Tier("shared", self.folder / name, 1, Retention(1))
        assert saver.begin(tier, self.steps, lambda state, save_id: {}, prunes=True) is None
        while (outcome := saver.advance(waits=name == "foreground")) is None:
            self.beside_s.append(self.step())
        assert outcome.problem is None, outcome.problem
        return outcome

    def plain_write(self) -> float:
        """Seconds of writing the same bytes and forcing them to the disk, all ranks at once."""
        path = self.folder / f"plain_{dist.get_rank()}"
        dist.barrier()
        start_s = time.perf_counter()
        with path.open("wb", buffering=0) as file:
            written = 0
            while written < len(self.own_bytes):
                written += file.write(self.own_bytes[written:])
            os.fsync(file.fileno())
        dist.barrier()
        seconds = time.perf_counter() - start_s
        path.unlink()
        return seconds

    def deepspeed_save(self) -> float:
        """Seconds of DeepSpeed's own save, which forces nothing to the disk."""
        folder = self.folder / "deepspeed"
        start_s = time.perf_counter()
        self.engine.ds.save_checkpoint(str(folder), tag="t", save_latest=False)
        seconds = time.perf_counter() - start_s
        if dist.get_rank() == 0:
            shutil.rmtree(folder)
        dist.barrier()
        return seconds


def measure(rank: int, port: int, folder: str, rounds: int) -> None:
    """One rank of the rounds; rank 0 prints."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(RANKS), LOCAL_WORLD_SIZE=str(RANKS))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    connect(from_environment(), deterministic=False, collective_timeout_s=600)
    all_rounds = Rounds(Path(folder))
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    for number in range(-1, rounds):  # the first one warms up
        if number == 0:
            found.clear()
        note("step without a save", statistics.median(all_rounds.step() for _ in range(4)))
        all_rounds.beside_s.clear()
        foreground, background = all_rounds.save("foreground"), all_rounds.save("background")
        note("stall, training waits", foreground.stall_s)
        note("stall, beside the training", background.stall_s)
        note("beside the training, until complete", background.seconds)
        note("steps beside it, each", statistics.median(all_rounds.beside_s))
        note("plain write and fsync", all_rounds.plain_write())
        note("DeepSpeed's save_checkpoint, no fsync", all_rounds.deepspeed_save())
    if rank == 0:
        parameters = sum(p.numel() for p in all_rounds.engine.ds.module.parameters())
        print(f"{parameters:,} parameters, {all_rounds.total_bytes / 1e9:.2f} GB a checkpoint, {rounds} rounds\n")
        plain = found["plain write and fsync"]
        print("| what | median, s | smallest to largest, s | of the plain write |\n|---|---|---|---|")
        for name, values in found.items():
            ratio = statistics.median(value / one for value, one in zip(values, plain, strict=True))
            print(
                f"| {name} | {statistics.median(values):.3f} | {min(values):.3f} to {max(values):.3f} | {ratio:.2f} |"
            )
    dist.barrier()


def time_starts(folder: Path, starts: int) -> None:
    """Prints the seconds from the start of the command to the end of the first step, cold and resumed."""
    manifest = prepare_python_stdlib(folder / "data", 4096)
    config = folder / "starts.yaml"
    train = {"global_batch_size": 8, "micro_batch_size": 4, "max_seq_len": 128, "precision": "bf16", "max_steps": 4}
    model = MODEL.model_dump(exclude_none=True)
    content = {
        "run_dir": str(folder / "run"),
        "model": model,
        "data": {"manifest": str(manifest)},
        "train": train,
        "optim": {"warmup_steps": 1, "decay_steps": 100},
        "eval": {"every_steps": 1000, "max_sequences": 8},
        "checkpoint": {"every_steps": 2},
    }
    config.write_text(json.dumps(content))
    print("\n| start | seconds to the end of the first step |\n|---|---|")
    found: dict[str, list[float]] = {"cold": [], "resumed": []}
    for _ in range(starts):
        shutil.rmtree(folder / "run", ignore_errors=True)
        found["cold"].append(start(config, folder / "run", 1, []))
        found["resumed"].append(start(config, folder / "run", 2, ["--train.max_steps", "6"]))
    for name, values in found.items():
        print(f"| {name} | {statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f}) |")
    saves = [event for event in read_events(folder / "run" / "events.jsonl") if event["event"] == "save"]
    print(f"\nThe checkpoints of these runs: {saves[0]['bytes'] / 1e9:.2f} GB.")


def start(config: Path, run_dir: Path, attempt: int, flags: list[str]) -> float:
    """Seconds from the start of two ranks to the end of their first step."""
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    begun_s = time.time()
    ranks = [
        subprocess.Popen(
            [*LAUNCH, "--config", str(config), *flags],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
        )
        for rank in range(RANKS)
    ]
    codes = [rank.wait(timeout=600) for rank in ranks]
    assert codes == [0, 0], f"the ranks ended with {codes}; what they said stands above"
    lines = [line for line in read_metrics(run_dir / "metrics.jsonl") if line["attempt"] == attempt]
    return float(lines[0]["time_s"]) - begun_s


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def main(*, rounds: int = 0, starts: int = 0, folder: str = "") -> None:
    """Measures.

    Args:
        rounds: Of saves.
        starts: Of each kind.
        folder: Where to write; a temporary one by default.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    print_conditions("torch", "deepspeed")
    with tempfile.TemporaryDirectory(dir=folder or None) as place:
        if rounds:
            mp.spawn(measure, (free_port(), place, rounds), nprocs=RANKS)
        if starts:
            time_starts(Path(place), starts)


if __name__ == "__main__":
    fire.Fire(main)
