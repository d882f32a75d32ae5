"""A run with metrics and evaluation, as ranks do it, and what its figures have to be."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy

from scaletrain.config.batch_plan import BatchPlan
from scaletrain.config.schema import EvalConfig, LossConfig, ModelConfig, TaskConfig
from scaletrain.data.corpus_facts import CorpusFacts
from scaletrain.data.rows import MicroBatch
from scaletrain.data.tokenizer import train_byte_level_bpe
from scaletrain.model.transformer import Transformer
from scaletrain.monitors.throughput import Throughput
from scaletrain.protocols import TrainingState
from scaletrain.tasks.causal_lm import CausalLMTask
from scaletrain.tasks.task import TaskSetting
from scaletrain.training.evaluating import Evaluating
from scaletrain.training.loop import TrainingRun, fit
from scaletrain.training.reporting import Reporting
from scaletrain.training.signals import StopRequests
from tests.engine import bodies as engine_bodies
from tests.engine.bodies import GLOBAL_BATCH, MAX_SEQ_LEN, Case
from tests.tasks.made_rows import OneReader
from tests.training.bodies import Job, batches, feed_of, keep_signal_handlers, live_weights

EVALUATED = range(900, 906)
"""Sequences of the fixed set; on two ranks with micro batches of two, two rows are filling."""
SEQUENCES_PER_EPOCH = 16


class Notebook:
    """A metric writer that keeps what it gets."""

    def __init__(self) -> None:
        self.metrics: list[tuple[int, dict[str, float]]] = []
        self.texts: list[tuple[str, int, str]] = []
        self.closed = 0

    def write(self, step: int, metrics: Mapping[str, int | float]) -> None:
        assert not self.closed
        self.metrics.append((step, dict(metrics)))

    def write_text(self, name: str, step: int, text: str) -> None:
        self.texts.append((name, step, text))

    def close(self) -> None:
        self.closed += 1


def tokenizer() -> Tokenizer:
    """Byte-level, so that the first 101 tokens, which the model knows, are bytes."""
    return train_byte_level_bpe(["some text"], vocab_size=300)


def evaluated_batches() -> Iterator[MicroBatch]:
    plan = BatchPlan(len(EVALUATED), 2, dist.get_world_size())
    for indices in plan.micro_batches(dist.get_rank(), 0):
        yield engine_bodies.micro_batch([index if index < 0 else EVALUATED[index] for index in indices])


def train(folder: str, every_steps: int, steps: int, interval_steps: int) -> dict[str, Any]:
    """Trains, and computes the figures of the last evaluation anew, without the engine."""
    plan = BatchPlan(GLOBAL_BATCH, 2, dist.get_world_size())
    engine = engine_bodies.build_engine(Case(stage=1, model={"dropout": 0.1}), plan)
    config = EvalConfig(every_steps=every_steps, prompts=("a", "b"), sample_tokens=3, temperature=0.0)
    words = tokenizer()
    facts = CorpusFacts.of(OneReader().manifest)
    task = CausalLMTask(TaskSetting(TaskConfig(), LossConfig(), ModelConfig(), facts, words))
    evaluating = Evaluating(engine, config, evaluated_batches, words, 1, MAX_SEQ_LEN, ["corpus"], task)
    is_main = dist.get_rank() == 0
    often, seldom = Notebook(), Notebook()
    timing = Throughput(1.0, 1e9, dist.get_world_size())
    reporting = Reporting(
        [often] if is_main else (),
        [seldom] if is_main else (),
        interval_steps,
        timing,
        lambda sequences: {"data/epoch": sequences / SEQUENCES_PER_EPOCH},
        "a: 1",
        evaluating,
    )
    run = TrainingRun(TrainingState(), steps, Path(folder), 1, is_main, (reporting, evaluating))
    with keep_signal_handlers():
        stop = StopRequests(Path(folder), watch_file=is_main)
        feed = feed_of(batches(Job(folder), engine, plan, 0), engine, run.state)
        fit(run, engine, feed, lambda step: 3e-3, timing, stop, MAX_SEQ_LEN)
    return {
        "often": often.metrics,
        "seldom": seldom.metrics,
        "texts": seldom.texts,
        "closed": (often.closed, seldom.closed),
        "samples": evaluating.samples,
        "expected": _figures(live_weights(engine), words),
    }


def _figures(weights: dict[str, torch.Tensor], words: Tokenizer) -> dict[str, float]:
    """Loss, perplexity and bits per byte of the fixed set, in one batch."""
    model = Transformer(ModelConfig(**engine_bodies.MODEL))
    model.load_state_dict(weights)
    rows = [engine_bodies.sequence(index) for index in EVALUATED]
    batch = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
    with torch.no_grad():
        logits = model.eval()(batch["tokens"], batch["positions"], batch["documents"])
    targets = batch["targets"].flatten()
    nll = float(cross_entropy(logits.flatten(0, 1), targets, ignore_index=-100, reduction="sum"))
    kept = targets[targets >= 0].tolist()
    # Each of the tokens in use stands for one byte.
    n_bytes = sum(len(words.decode([token])) for token in kept)
    loss = nll / len(kept)
    return {
        "eval/loss": loss,
        "eval/perplexity": math.exp(loss),
        "eval/bits_per_byte": nll / math.log(2) / n_bytes,
    }
