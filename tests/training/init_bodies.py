"""What the ranks do that begin with the weights of a checkpoint."""

from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist
from torch import Tensor

from scaletrain.checkpoint.weights import read_weights
from scaletrain.config.batch_plan import BatchPlan
from scaletrain.config.schema import OptimConfig
from scaletrain.optim.schedules import learning_rate
from scaletrain.protocols import TrainingState
from scaletrain.training.init_source import InitSource
from scaletrain.training.resuming import Resumed, begin_with
from tests.engine import bodies
from tests.engine.bodies import GLOBAL_BATCH, OPTIM, Case
from tests.training.bodies import live_weights, this_place

FIRST = range(GLOBAL_BATCH)


@dataclass(frozen=True)
class Beginning:
    """A new run's first moments.

    Attributes:
        masters: fp32 weights by name, as the run would save them.
        live: Weights of the forward pass.
        applied_steps: Updates that the optimizer believes to have made.
        losses: Of the first steps.
    """

    masters: dict[str, Tensor]
    live: dict[str, Tensor]
    applied_steps: int
    losses: list[float]


def evaluate_source(case: Case, folder: str) -> float:
    """The loss of the saved weights on the first global batch."""
    plan = BatchPlan(GLOBAL_BATCH, case.micro, dist.get_world_size())
    engine = bodies.build_engine(case, plan)
    bodies.load(engine, Path(folder))
    sums = engine.evaluate(iter(bodies.micro_batches(plan, dist.get_rank(), 0)), lambda micro: micro["targets"].sum())
    return sums.nll / sums.targets


def begin(case: Case, source: str, scratch: str) -> Beginning:
    """Begins with a checkpoint, saves at once, and trains three steps."""
    plan = BatchPlan(GLOBAL_BATCH, case.micro, dist.get_world_size())
    engine = bodies.build_engine(case, plan)
    fresh = Resumed(TrainingState(), None, ())
    begun = begin_with(engine, lambda: [InitSource(Path(source), 5)], fresh, "off", this_place())
    assert begun.source == InitSource(Path(source), 5) and begun.state == TrainingState()
    live = live_weights(engine)
    bodies.save(engine, Path(scratch))
    applied_steps = int(engine.collect(False).state["applied_steps"])
    optim, losses = OptimConfig(**OPTIM), []
    for step in range(3):
        batch = bodies.micro_batches(plan, dist.get_rank(), step)
        agreed = engine.agree(batch, ())
        losses.append(engine.train_step(batch, agreed.targets, step, learning_rate(optim, step, 20)).loss)
    return Beginning(read_weights(Path(scratch)), live, applied_steps, losses)


def begin_with_other_heads(case: Case, source: str, scratch: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights that a model is made with, and those that it begins with, as the run would save them."""
    engine = bodies.build_engine(case, BatchPlan(GLOBAL_BATCH, case.micro, dist.get_world_size()))
    bodies.save(engine, Path(scratch) / "made")
    fresh = Resumed(TrainingState(), None, ())
    begun = begin_with(engine, lambda: [InitSource(Path(source), 5)], fresh, "off", this_place())
    assert [line.split(" ", 1)[0].rstrip(",") for line in begun.fit] == ["output.bias", "embedding.weight"]
    bodies.save(engine, Path(scratch) / "begun")
    return read_weights(Path(scratch) / "made"), read_weights(Path(scratch) / "begun")
