"""What the ranks of the engine's tests do: train a tiny model on batches computed from the step alone."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from scaletrain.checkpoint.fragments import FragmentReader
from scaletrain.checkpoint.writing import write_part
from scaletrain.config.batch_plan import FILLING, BatchPlan
from scaletrain.config.schema import LoraConfig, LossConfig, ModelConfig, OptimConfig, TrainConfig, TuneConfig
from scaletrain.data.rows import MicroBatch
from scaletrain.engine.ds_config import merge
from scaletrain.engine.engine import Agreement, Engine
from scaletrain.engine.summing import EvaluationSums
from scaletrain.model.transformer import Transformer
from scaletrain.model.tuning import prepare
from scaletrain.optim.optimizers import build_optimizer, parameter_groups
from scaletrain.optim.schedules import learning_rate
from scaletrain.protocols import StepResult
from scaletrain.tasks.causal_lm import CausalLM

GLOBAL_BATCH, MAX_SEQ_LEN, VOCAB = 8, 32, 101
SMALL_BUCKET = {"reduce_bucket_size": 1_000_000}
"""DeepSpeed keeps a gigabyte or two of address space for the gradients of each engine of stage 3, also when that is
gone. Where those of many join, and exceed the memory of the machine, the kernel no longer forks the process."""
# Sizes that no number of ranks divides, and a tied embedding.
MODEL = {"vocab_size": VOCAB, "d_model": 30, "n_layers": 2, "n_heads": 3, "max_seq_len": MAX_SEQ_LEN}
OPTIM = {"lr": 3e-3, "warmup_steps": 4, "grad_clip": 0.5}


@dataclass(frozen=True)
class Case:
    """One way to train the same thing."""

    stage: int = 0
    precision: str = "fp32"
    micro: int = 2
    steps: tuple[int, int] = (0, 20)
    checkpointing: bool = False
    compiled: bool = False
    offload: Literal["", "optimizer", "all"] = ""
    model: dict[str, Any] = field(default_factory=dict)
    optim: dict[str, Any] = field(default_factory=dict)
    lora: dict[str, Any] = field(default_factory=dict)
    tune: dict[str, Any] = field(default_factory=dict)
    save: str | None = None
    load: str | None = None
    generate_after: int | None = None
    n_sources: int = 1


def sequence(index: int) -> dict[str, Tensor]:
    """Sequence ``index``: two documents, and some tokens that are no targets; -1 is filling."""
    if index == FILLING:
        return {
            "tokens": torch.zeros(MAX_SEQ_LEN, dtype=torch.int64),
            "targets": torch.full((MAX_SEQ_LEN,), -100),
            "documents": torch.zeros(MAX_SEQ_LEN, dtype=torch.int32),
            "positions": torch.arange(MAX_SEQ_LEN),
        }
    generator = torch.Generator().manual_seed(index)
    # Few different tokens, so that there is something to learn.
    tokens = torch.randint(0, 7, (MAX_SEQ_LEN + 1,), generator=generator)
    border = int(torch.randint(2, MAX_SEQ_LEN - 2, (1,), generator=generator))
    targets = tokens[1:].clone()
    targets[border - 1] = -100
    targets[: index % 5] = -100
    places = torch.arange(MAX_SEQ_LEN)
    documents = (places >= border).int()
    return {
        "tokens": tokens[:-1],
        "targets": targets,
        "documents": documents,
        "positions": torch.where(documents == 1, places - border, places),
    }


def micro_batches(plan: BatchPlan, rank: int, step: int) -> list[MicroBatch]:
    """A rank's part of a step."""
    return [micro_batch(rows) for rows in plan.micro_batches(rank, step * plan.global_batch_size)]


def micro_batch(indices: Sequence[int], n_sources: int = 1) -> MicroBatch:
    """Sequences as a forward pass takes them; they come from the sources in turn."""
    rows = [sequence(index) for index in indices]
    tensors = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
    sources = torch.tensor([max(0, index) % n_sources for index in indices])
    return MicroBatch(
        inputs=tensors,
        targets=(tensors["targets"] >= 0).sum(1),
        sources=sources,
        sequences=torch.tensor(indices),
        checksum=sum(map(checksum, indices)) % 2**64,
    )


def checksum(index: int) -> int:
    """Some 64 bits for each sequence, none for filling."""
    return 0 if index == FILLING else (index + 1) * 0x9E3779B97F4A7C15 % 2**64


def build_engine(case: Case, plan: BatchPlan) -> Engine:
    """Makes the engine of a case."""
    model, optim = ModelConfig(**(MODEL | case.model)), OptimConfig(**(OPTIM | case.optim))
    train = TrainConfig(precision=case.precision, micro_batch_size=case.micro, global_batch_size=GLOBAL_BATCH)
    zero: dict[str, Any] = {"stage": case.stage, **SMALL_BUCKET}
    if case.offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    if case.offload == "all":
        zero["offload_param"] = {"device": "cpu"}
    tune = TuneConfig(**case.tune)

    def module() -> CausalLM:
        transformer = Transformer(model, checkpoint_activations=case.checkpointing)
        prepare(transformer, LoraConfig(**case.lora), tune)
        return CausalLM(transformer, LossConfig())

    def optimizer(module: torch.nn.Module) -> torch.optim.Optimizer:
        groups = parameter_groups(module.named_parameters(), optim.weight_decay, tune.layer_decay)
        return build_optimizer(optim, groups)

    return Engine(
        module,
        optimizer,
        merge({"zero_optimization": zero}, train, optim, plan.micro_steps, plan.world_size),
        seed=5,
        compile_module=case.compiled,
        n_sources=case.n_sources,
    )


def train(case: Case) -> list[tuple[float, float, bool]]:
    """Trains a case; returns loss, gradient norm and whether it was applied for each step."""
    optim = OptimConfig(**(OPTIM | case.optim))
    plan = BatchPlan(GLOBAL_BATCH, case.micro, dist.get_world_size())
    engine = build_engine(case, plan)
    if case.load is not None:
        load(engine, Path(case.load))
    results = []
    for step in range(*case.steps):
        batch = micro_batches(plan, dist.get_rank(), step)
        agreed = engine.agree(batch, (False,))
        result = engine.train_step(batch, agreed.targets, step, learning_rate(optim, step, 20))
        results.append((result.loss, result.grad_norm, result.applied))
        if step == case.generate_after:
            generate_and_evaluate(engine, plan)
    if case.save is not None:
        save(engine, Path(case.save))
    return results


def train_batches(case: Case, sizes: Sequence[int]) -> list[tuple[StepResult, Agreement]]:
    """Trains on global batches of several sizes, one after the other: other micro steps in each."""
    optim, world_size = OptimConfig(**OPTIM), dist.get_world_size()
    engine = build_engine(case, BatchPlan(sizes[0], case.micro, world_size))
    results, first = [], 0
    for step, size in enumerate(sizes):
        rows = range(first, first + size)[dist.get_rank() :: world_size]
        starts = range(0, len(rows), case.micro)
        batch = [micro_batch(rows[start : start + case.micro], case.n_sources) for start in starts]
        agreed = engine.agree(batch, (dist.get_rank() == 1,))
        lr = learning_rate(optim, step, 20)
        results.append((engine.train_step(batch, agreed.targets, step, lr), agreed))
        first += size
    return results


def evaluate(case: Case, indices: Sequence[int]) -> EvaluationSums:
    """Evaluates the initial weights, each rank its part of the sequences."""
    engine = build_engine(case, BatchPlan(GLOBAL_BATCH, case.micro, dist.get_world_size()))
    rows = indices[dist.get_rank() :: dist.get_world_size()]
    batches = (micro_batch(rows[start : start + case.micro], case.n_sources) for start in range(0, len(rows), 2))
    return engine.evaluate(batches, lambda micro: (micro["inputs"]["targets"] == 3).sum())


def poison(engine: Engine) -> None:
    """Makes one gradient of all backward passes of this rank NaN from now on."""
    next(engine.ds.module.parameters()).register_hook(lambda grad: grad * float("nan"))


def generate_and_evaluate(engine: Engine, plan: BatchPlan) -> None:
    """What a run does between steps; it must leave no trace in the training."""
    from scaletrain.evaluation.generation import generate

    engine.evaluate(iter(micro_batches(plan, dist.get_rank(), 0)), lambda micro: micro["targets"].sum())
    with engine.generating() as model:
        assert len(list(generate(model, [1, 2], 5, agree=engine.broadcast_number))) == 5


def save(engine: Engine, folder: Path) -> None:
    """Saves without the commit protocol, which has tests of its own."""
    folder.mkdir(exist_ok=True)
    part = engine.collect(dist.get_rank() == 0)
    write_part(folder, dist.get_rank(), part, {})
    if dist.get_rank() == 0:
        (folder / "state.json").write_text(json.dumps({"engine": part.state}))
    dist.barrier()


def load(engine: Engine, folder: Path) -> None:
    """Loads what ``save`` wrote."""
    state = json.loads((folder / "state.json").read_text())["engine"]
    engine.load(FragmentReader(folder, state["zero_stage"]), state)


def plain_loop(sizes: Sequence[int]) -> list[tuple[list[float], float]]:
    """The same training in plain PyTorch: one process, no DeepSpeed, the whole global batch at once.

    Args:
        sizes: Sequences in each step.

    Returns:
        For each step the sum of the cross-entropy over each of its sequences, and the gradient's norm.
    """
    from scaletrain.engine.randomness import derive_seed

    optim = OptimConfig(**OPTIM)
    torch.manual_seed(derive_seed("init", 5))
    model = Transformer(ModelConfig(**MODEL))
    decayed = [p for n, p in model.named_parameters() if p.ndim == 2 and "position" not in n]
    kept = [p for n, p in model.named_parameters() if p.ndim < 2 or "position" in n]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": kept, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    found, first = [], 0
    for step, size in enumerate(sizes):
        rows = [sequence(first + i) for i in range(size)]
        first += size
        batch = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
        logits_BVT = model(batch["tokens"], batch["positions"], batch["documents"]).transpose(1, 2)
        options = {"ignore_index": -100, "reduction": "none"}
        nll_B = torch.nn.functional.cross_entropy(logits_BVT, batch["targets"], **options).sum(1)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(optim, step, 20)
        optimizer.zero_grad()
        (nll_B.sum() / (batch["targets"] >= 0).sum()).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), optim.grad_clip)
        optimizer.step()
        found.append((nll_B.tolist(), float(norm)))
    return found


def plain(sizes: Sequence[int]) -> list[tuple[list[float], float]]:
    """``plain_loop`` as the body of a single rank."""
    return plain_loop(sizes)


def n_targets(indices: Sequence[int]) -> int:
    """Targets of some sequences."""
    return sum(int((sequence(index)["targets"] >= 0).sum()) for index in indices)
