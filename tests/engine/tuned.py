"""What the ranks do in tests of trainings that leave weights alone, or keep further numbers beside them."""

from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist
from torch import Tensor

from scaletrain.checkpoint.weights import read_weights
from scaletrain.config.batch_plan import BatchPlan
from scaletrain.config.schema import OptimConfig
from scaletrain.engine.engine import Engine
from scaletrain.optim.schedules import learning_rate
from tests.engine import bodies
from tests.engine.bodies import GLOBAL_BATCH, OPTIM, Case


@dataclass(frozen=True)
class Trained:
    """A training in two parts.

    Attributes:
        losses: Of all steps.
        weights: Before the first step, at the cut, and at the end: fp32 where trained, by name.
    """

    losses: list[float]
    weights: tuple[dict[str, Tensor], ...]


def train(case: Case, cut: int, end: int, folder: str) -> Trained:
    """Trains, and saves at the beginning, at the cut and at the end."""
    plan, engine = _build(case)
    weights, losses = [saved(engine, Path(folder) / "begin")], steps(engine, case, plan, range(cut))
    weights.append(saved(engine, Path(folder) / "cut"))
    losses += steps(engine, case, plan, range(cut, end))
    weights.append(saved(engine, Path(folder) / "end"))
    return Trained(losses, tuple(weights))


def go_on(case: Case, cut: int, end: int, folder: str, scratch: str) -> Trained:
    """Loads what another training has saved at the cut, and goes on."""
    plan, engine = _build(case)
    bodies.load(engine, Path(folder) / "cut")
    weights = [saved(engine, Path(scratch) / "loaded")]
    losses = steps(engine, case, plan, range(cut, end))
    weights.append(saved(engine, Path(scratch) / "end"))
    return Trained(losses, tuple(weights))


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
