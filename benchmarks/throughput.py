"""Tokens per second of this loop with DeepSpeed, beside a plain PyTorch loop on the same model and batches.

All variants live in one process and take turns, so that what else the machine does hits them alike.

    python benchmarks/throughput.py --rounds 7 --steps 2
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import fire
import torch
import torch.distributed as dist

from scaletrain.config.batch_plan import BatchPlan
from scaletrain.config.derive import load_deepspeed_json
from scaletrain.config.load import load_config
from scaletrain.config.schema import RunConfig
from scaletrain.corpus.embedded import prepare_python_stdlib
from scaletrain.data.dataset import SequenceDataset
from scaletrain.data.manifest import Manifest
from scaletrain.data.order import DatasetOptions
from scaletrain.data.rows import MicroBatch
from scaletrain.data.shards import ShardReader
from scaletrain.engine.ds_config import merge
from scaletrain.engine.engine import Engine
from scaletrain.model.transformer import Transformer
from scaletrain.monitors.throughput import measure_matmul_flops_per_s
from scaletrain.optim.optimizers import build_optimizer, parameter_groups
from scaletrain.planning.flops import flops_per_token
from scaletrain.ranks import from_environment
from scaletrain.tasks.causal_lm import CausalLM
from scaletrain.training.processes import connect

Step = Callable[[list[MicroBatch]], None]


def plain_loop(config: RunConfig) -> Step:
    """The reference: autocast, torch.compile, fused AdamW, clipping; no DeepSpeed."""
    task = CausalLM(Transformer(config.model), config.loss)
    optimizer = build_optimizer(config.optim, parameter_groups(task.named_parameters(), config.optim.weight_decay))
    task.compile()

    def step(micro_batches: list[MicroBatch]) -> None:
        targets = sum(int((micro["inputs"]["targets"] >= 0).sum()) for micro in micro_batches)
        for micro in micro_batches:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                terms = task(
                    micro["inputs"]["tokens"],
                    micro["inputs"]["targets"],
                    micro["inputs"]["documents"],
                    micro["inputs"]["positions"],
                )
            (terms.loss_sum / targets).backward()
        torch.nn.utils.clip_grad_norm_(task.parameters(), config.optim.grad_clip)
        optimizer.step()
        optimizer.zero_grad()

    return step


def engine_loop(config: RunConfig, stage: int, plan: BatchPlan) -> Step:
    """This project's engine at a ZeRO stage."""
    ds = merge(
        load_deepspeed_json(Path(f"configs/ds/zero{stage}.json")), config.train, config.optim, plan.micro_steps, 1
    )
    engine = Engine(
        lambda: CausalLM(Transformer(config.model), config.loss),
        lambda task: build_optimizer(
            config.optim, parameter_groups(task.named_parameters(), config.optim.weight_decay)
        ),
        ds,
        config.seed,
        compile_module=True,
    )

    def step(micro_batches: list[MicroBatch]) -> None:
        agreed = engine.agree(micro_batches, (False,))
        engine.train_step(micro_batches, agreed.targets, 0, config.optim.lr)

    return step


def batches(config: RunConfig, manifest: Manifest, borders: bool) -> list[MicroBatch]:
    """The micro batches of one step; with borders, only such as have one."""
    options = DatasetOptions(config.train.max_seq_len, document_borders=borders)
    dataset = SequenceDataset([ShardReader(manifest, "train")], options)
    size = config.train.micro_batch_size
    found: list[MicroBatch] = []
    start = 0
    while len(found) * size < config.train.global_batch_size:
        micro = dataset.micro_batch(range(start, start + size))
        start += size
        if not borders or micro["inputs"]["documents"] is not None:
            found.append(micro)
    return found


def main(*, rounds: str = "7", steps: str = "2", stages: str = "0,1,2,3", out: str = "") -> None:
    """Measures and prints a table.

    Args:
        rounds: Turns of each variant.
        steps: Steps in a turn.
        stages: ZeRO stages to measure.
        out: JSON file to write.
    """
    connect(from_environment(), deterministic=False)
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(None, {})
        manifest = Manifest.open(prepare_python_stdlib(Path(folder), config.model.vocab_size))
        plan = BatchPlan(config.train.global_batch_size, config.train.micro_batch_size, 1)
        data = {"no borders": batches(config, manifest, False), "borders": batches(config, manifest, True)}
        variants: dict[str, Step] = {"plain loop": plain_loop(config)}
        for stage in map(int, stages.strip("()").split(",")):
            variants[f"ZeRO {stage}"] = engine_loop(config, stage, plan)
        times: dict[tuple[str, str], list[float]] = {(v, d): [] for v in variants for d in data}
        for variant, kind in times:  # compiles both graphs
            start = time.perf_counter()
            variants[variant](data[kind])
            variants[variant](data[kind])
            print(f"warm: {variant}, {kind}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        peaks: list[float] = []
        for _ in range(int(rounds)):
            peaks.append(measure_matmul_flops_per_s("bf16"))
            for (variant, kind), seconds in times.items():
                start = time.perf_counter()
                for _ in range(int(steps)):
                    variants[variant](data[kind])
                seconds.append((time.perf_counter() - start) / int(steps))
        report(config, times, peaks, out)
    dist.destroy_process_group()


def report(config: RunConfig, times: dict[tuple[str, str], list[float]], peaks: list[float], out: str) -> None:
    """Prints medians, spread and the ratio to the plain loop of the same round."""
    tokens = config.train.global_batch_size * config.train.max_seq_len
    flops = flops_per_token(config.model, config.train.max_seq_len)
    peak = max(peaks)
    rows = []
    print(f"matmul bf16: {peak / 1e9:.0f} GFLOP/s best, {statistics.median(peaks) / 1e9:.0f} median")
    print(f"{'variant':<12} {'data':<11} {'tokens/s':>9} {'min-max':>13} {'MFU':>6} {'of plain':>9}")
    for (variant, kind), seconds in times.items():
        plain = times["plain loop", kind]
        ratio = statistics.median(p / s for p, s in zip(plain, seconds, strict=True))
        rate = tokens / statistics.median(seconds)
        spread = f"{tokens / max(seconds):.0f}-{tokens / min(seconds):.0f}"
        print(f"{variant:<12} {kind:<11} {rate:9.0f} {spread:>13} {rate * flops / peak:6.1%} {ratio:9.2f}")
        rows.append({"variant": variant, "data": kind, "tokens_per_s": rate, "ratio": ratio, "seconds": seconds})
    if out:
        Path(out).write_text(json.dumps({"peak_flops_per_s": peak, "rows": rows}, indent=1))


if __name__ == "__main__":
    fire.Fire(main)
