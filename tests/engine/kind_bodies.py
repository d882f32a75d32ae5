"""What ranks do that train models of every kind: on batches computed from the step, in an engine or a plain loop."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from scaletrain.checkpoint.weights import read_weights
from scaletrain.config.batch_plan import FILLING, BatchPlan
from scaletrain.config.schema import LossConfig, ModelConfig, OptimConfig, TrainConfig
from scaletrain.data.rows import MicroBatch
from scaletrain.engine.ds_config import merge
from scaletrain.engine.engine import Engine
from scaletrain.engine.randomness import derive_seed
from scaletrain.evaluation.beam_search import Search, search_texts
from scaletrain.model.build import Classifier, Seq2Seq, build_model
from scaletrain.optim.optimizers import build_optimizer, parameter_groups
from scaletrain.tasks.causal_lm import CausalLM
from scaletrain.tasks.classification import SingleLabel
from scaletrain.tasks.seq2seq import Seq2Seq as Seq2SeqModule
from tests.engine import bodies

VOCAB, S, T, CLASSES, GLOBAL_BATCH, LR = 53, 12, 9, 3, 6, 1e-2
# A width that no number of ranks divides.
SMALL = {"vocab_size": VOCAB, "d_model": 30, "n_layers": 2, "n_heads": 3, "max_seq_len": 16, "init_std": 0.1}
OPTIM = OptimConfig(lr=LR, warmup_steps=0, eps=1e-5)


@dataclass(frozen=True)
class Case:
    """A model, and how it is trained."""

    model: dict[str, Any]
    stage: int = 0
    precision: str = "fp32"
    compiled: bool = False
    steps: tuple[int, int] = (0, 6)
    save: str | None = None
    load: str | None = None
    search_after: int | None = None


def config_of(case: Case) -> ModelConfig:
    """The description of a case's model."""
    return ModelConfig(**(SMALL | case.model))


def build_module(case: Case) -> nn.Module:
    """The model with the loss of a task that it can do."""
    model = build_model(config_of(case))
    if isinstance(model, Seq2Seq):
        return Seq2SeqModule(model, LossConfig())
    if model.config.n_classes and isinstance(model, Classifier):
        return SingleLabel(model, None, 0.0)
    return CausalLM(model, LossConfig())


def rows_of(case: Case, indices: list[int]) -> dict[str, Tensor | None]:
    """Arguments of the module for some rows; the same in each step, so that they can be learnt."""
    config = config_of(case)
    generators = [torch.Generator().manual_seed(max(0, index) % GLOBAL_BATCH) for index in indices]
    source = torch.stack([torch.randint(VOCAB, (S,), generator=each) for each in generators])
    lengths = torch.stack([torch.randint(2, S + 1, (), generator=each) for each in generators])
    is_real = torch.tensor(indices) != FILLING
    mask = torch.arange(S) < lengths.unsqueeze(1)
    if config.n_encoder_layers:
        text = torch.stack([torch.randint(VOCAB, (T + 1,), generator=each) for each in generators])
        targets = text[:, 1:].where(is_real.unsqueeze(1), -100)
        # A row of filling has a source without any token.
        return {
            "source": source,
            "source_mask": mask & is_real.unsqueeze(1),
            "tokens": text[:, :-1],
            "targets": targets,
        }
    if config.n_classes:
        values = source[:, :1] % CLASSES
        documents = (~mask).int()
        return {"tokens": source, "mask": mask, "documents": documents, "values": values.float(), "is_real": is_real}
    targets = source.roll(-1, 1).where(mask & is_real.unsqueeze(1), -100)
    return {"tokens": source, "targets": targets, "documents": (~mask).int(), "positions": None}


def targets_of(inputs: dict[str, Tensor | None]) -> Tensor:
    """What each row counts for."""
    targets, is_real = inputs.get("targets"), inputs.get("is_real")
    if targets is not None:
        return (targets >= 0).sum(1)
    assert is_real is not None
    return is_real.long()


def micro_batch(case: Case, indices: list[int]) -> MicroBatch:
    """Rows as the engine takes them."""
    inputs = rows_of(case, indices)
    n_rows = torch.zeros(len(indices), dtype=torch.int64)
    return MicroBatch(
        inputs=inputs, targets=targets_of(inputs), sources=n_rows, sequences=torch.tensor(indices), checksum=0
    )


def train(case: Case) -> tuple[list[float], list[list[int]]]:
    """Losses of some steps in an engine, and the texts that it was made to write between them."""
    # One row of the batch is left over on 2 ranks with micro batches of 2: filling makes up for it.
    plan = BatchPlan(GLOBAL_BATCH, 2, dist.get_world_size())
    train_config = TrainConfig(precision=case.precision, micro_batch_size=2, global_batch_size=GLOBAL_BATCH)
    engine = Engine(
        lambda: build_module(case),
        lambda module: build_optimizer(OPTIM, parameter_groups(module.named_parameters(), 0.1)),
        merge(
            {"zero_optimization": {"stage": case.stage, **bodies.SMALL_BUCKET}},
            train_config,
            OPTIM,
            plan.micro_steps,
            plan.world_size,
        ),
        seed=5,
        compile_module=case.compiled,
    )
    if case.load is not None:
        bodies.load(engine, Path(case.load))
    losses, texts = [], []
    for step in range(*case.steps):
        micros = [micro_batch(case, rows) for rows in plan.micro_batches(dist.get_rank(), step * GLOBAL_BATCH)]
        agreed = engine.agree(micros, ())
        losses.append(engine.train_step(micros, agreed.targets, step, LR).loss)
        if step == case.search_after:
            texts = search(engine, case)
    if case.save is not None:
        bodies.save(engine, Path(case.save))
    return losses, texts


def search(engine: Engine, case: Case) -> list[list[int]]:
    """The likeliest texts for sources that differ from rank to rank, which end at other lengths."""
    inputs = rows_of(case, [dist.get_rank(), dist.get_rank() + 2])
    source, mask = inputs["source"], inputs["source_mask"]
    assert source is not None

    def agree(is_done: bool) -> bool:
        waiting = torch.tensor(int(not is_done))
        dist.all_reduce(waiting)
        return not int(waiting)

    with engine.generating() as model:
        return search_texts(model, source, mask, Search(max_new_tokens=5, start_id=0, eos_id=1, beams=3), agree)


def plain(case: Case) -> list[float]:
    """The same training in plain PyTorch: one process, no DeepSpeed, the whole global batch at once."""
    torch.manual_seed(derive_seed("init", 5))
    module = build_module(case)
    optimizer = build_optimizer(OPTIM, parameter_groups(module.named_parameters(), 0.1))
    losses = []
    for step in range(*case.steps):
        inputs = rows_of(case, list(range(step * GLOBAL_BATCH, (step + 1) * GLOBAL_BATCH)))
        targets = targets_of(inputs).sum()
        terms = module(**inputs)
        optimizer.zero_grad()
        (terms.loss_sum / targets).backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), OPTIM.grad_clip)
        optimizer.step()
        losses.append(float(terms.nll_B.sum() / targets))
    return losses


def saved_shapes(case: Case) -> dict[str, list[int]]:
    """What a saved checkpoint holds, by name, once it is in the model that it is of."""
    assert case.save is not None
    weights = read_weights(Path(case.save))
    build_model(config_of(case)).load_state_dict(weights)
    return {name: list(weight.shape) for name, weight in weights.items()}
