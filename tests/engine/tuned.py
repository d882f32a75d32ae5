"""What the ranks do in tests of trainings that leave weights alone, or keep further numbers beside them."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist
from torch import Tensor

from scaletrain.checkpoint.fragments import FragmentReader
from scaletrain.checkpoint.weights import read_weights
from scaletrain.config.batch_plan import BatchPlan
from scaletrain.config.schema import OptimConfig
from scaletrain.engine.engine import Engine
from scaletrain.optim.schedules import learning_rate
from scaletrain.protocols import EMA
from tests.engine import bodies
from tests.engine.bodies import GLOBAL_BATCH, OPTIM, Case
from tests.training.bodies import live_weights


@dataclass(frozen=True)
class Trained:
    """A training in two parts.

    Attributes:
        losses: Of all steps.
        weights: Before the first step, at the cut, and at the end: fp32 where trained, by name.
        averages: Moving averages at the end, where some are kept.
        evaluated: Loss on the batch of the first step, as an evaluation at the end finds it.
    """

    losses: list[float]
    weights: tuple[dict[str, Tensor], ...]
    averages: dict[str, Tensor]
    evaluated: float


@dataclass(frozen=True)
class Seen:
    """Weights by name after some steps: the masters and averages that are saved, and those of the forward pass."""

    masters: dict[str, Tensor]
    averages: dict[str, Tensor]
    before: dict[str, Tensor]
    during: dict[str, Tensor]
    after: dict[str, Tensor]


def train(case: Case, cut: int, end: int, folder: str) -> Trained:
    """Trains, and saves at the beginning, at the cut and at the end."""
    plan, engine = _build(case)
    weights, losses = [saved(engine, Path(folder) / "begin")], steps(engine, case, plan, range(cut))
    weights.append(saved(engine, Path(folder) / "cut"))
    losses += steps(engine, case, plan, range(cut, end))
    return _ended(engine, plan, weights, losses, Path(folder))


def _ended(
    engine: Engine, plan: BatchPlan, weights: list[dict[str, Tensor]], losses: list[float], folder: Path
) -> Trained:
    evaluated = _evaluate(engine, plan)
    weights.append(saved(engine, folder / "end"))
    return Trained(losses, tuple(weights), averages(folder / "end"), evaluated)


def _evaluate(engine: Engine, plan: BatchPlan) -> float:
    sums = engine.evaluate(iter(bodies.micro_batches(plan, dist.get_rank(), 0)), lambda micro: micro["targets"].sum())
    return sums.nll / sums.targets


def look(case: Case, folder: str) -> Seen:
    """Trains some steps, and looks at the weights before, during and after an evaluation."""
    plan, engine = _build(case)
    steps(engine, case, plan, range(4))
    before = live_weights(engine)
    with engine.generating():
        during = live_weights(engine)
    after = live_weights(engine)
    masters = saved(engine, Path(folder) / "saved")
    return Seen(masters, averages(Path(folder) / "saved"), before, during, after)


def averages(folder: Path) -> dict[str, Tensor]:
    """The moving averages in a checkpoint, by the names in the model."""
    state = json.loads((folder / "state.json").read_text())["engine"]
    if EMA not in state["moments"]:
        return {}
    reader, found = FragmentReader(folder, state["zero_stage"]), {}
    for name, shape in state["shapes"].items():
        flat = reader.read(name, EMA, 0, math.prod(shape))
        assert flat is not None
        found[name] = flat.view(shape)
    for name, saved_as in state["tied"].items():
        found[name] = found[saved_as]
    return {name.removeprefix("model."): average for name, average in found.items()}


def go_on(case: Case, cut: int, end: int, folder: str, scratch: str) -> Trained:
    """Loads what another training has saved at the cut, and goes on."""
    plan, engine = _build(case)
    bodies.load(engine, Path(folder) / "cut")
    weights = [saved(engine, Path(scratch) / "loaded")]
    _evaluate(engine, plan)  # which must leave no trace
    losses = steps(engine, case, plan, range(cut, end))
    return _ended(engine, plan, weights, losses, Path(scratch))


def _build(case: Case) -> tuple[BatchPlan, Engine]:
    plan = BatchPlan(GLOBAL_BATCH, case.micro, dist.get_world_size())
    return plan, bodies.build_engine(case, plan)


def steps(engine: Engine, case: Case, plan: BatchPlan, numbers: range) -> list[float]:
    """The losses of some steps."""
    optim, losses = OptimConfig(**(OPTIM | case.optim)), []
    for step in numbers:
        batch = bodies.micro_batches(plan, dist.get_rank(), step)
        agreed = engine.agree(batch, ())
        losses.append(engine.train_step(batch, agreed.targets, step, learning_rate(optim, step, 20)).loss)
    return losses


def saved(engine: Engine, folder: Path) -> dict[str, Tensor]:
    """Saves, and reads the weights back from the files."""
    folder.parent.mkdir(exist_ok=True)
    bodies.save(engine, folder)
    return read_weights(folder)
