"""What ranks do around a conversion: train and save; load what came out with DeepSpeed's own loader, and go on."""

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from scaletrain.checkpoint.fragments import FragmentReader
from scaletrain.checkpoint.retention import Retention
from scaletrain.config.batch_plan import BatchPlan
from scaletrain.config.load import dump_yaml
from scaletrain.config.schema import LossConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from scaletrain.engine.ds_config import merge
from scaletrain.engine.engine import Engine
from scaletrain.engine.partitions import base_optimizer, live_fragments
from scaletrain.model.transformer import Transformer
from scaletrain.optim.optimizers import build_optimizer, parameter_groups
from scaletrain.optim.schedules import learning_rate
from scaletrain.protocols import TrainingState
from scaletrain.tasks.causal_lm import CausalLM
from scaletrain.training.checkpointing import Checkpointing
from scaletrain.training.loop import TrainingRun
from scaletrain.training.saving import Saver
from scaletrain.training.tiers import Tier
from tests.engine import bodies
from tests.engine.bodies import GLOBAL_BATCH, Case
from tests.training.bodies import live_weights

KINDS = ("weight", "exp_avg", "exp_avg_sq")


def train_and_save(case: Case, folder: str, steps: int) -> dict[str, Any]:
    """Trains from the start and saves ``folder/checkpoints/step_...``.

    Returns:
        The live model's weights, gathered from all ranks, as fp32 arrays by their names in its state_dict.
    """
    plan = BatchPlan(GLOBAL_BATCH, case.micro, dist.get_world_size())
    engine = bodies.build_engine(case, plan)
    train(engine, plan, range(steps))
    model = ModelConfig(**bodies.MODEL | dict(case.model))
    tier = Tier("shared", Path(folder) / "checkpoints", 0, Retention(2))
    checkpointing = Checkpointing(Saver(engine, False, []), [tier], dump_yaml(RunConfig(model=model)))
    run = TrainingRun(TrainingState(), steps + 1, Path(folder), 1, dist.get_rank() == 0, ())
    run.state.step = max(steps, 1)  # none is saved before the first
    checkpointing.on_end(run)
    return {name: weight.float().numpy() for name, weight in live_weights(engine).items()}


def train(engine: Engine, plan: BatchPlan, steps: range) -> list[float]:
    """The losses of some steps."""
    optim, losses = OptimConfig(**bodies.OPTIM), []
    for step in steps:
        batch = bodies.micro_batches(plan, dist.get_rank(), step)
        agreed = engine.agree(batch, ())
        losses.append(engine.train_step(batch, agreed.targets, step, learning_rate(optim, step, 20)).loss)
    return losses


def load_ours(case: Case, checkpoint: str, steps: range) -> list[float]:
    """Loads a checkpoint as a run does; the losses of the next steps."""
    plan = BatchPlan(GLOBAL_BATCH, case.micro, dist.get_world_size())
    engine = bodies.build_engine(case, plan)
    bodies.load(engine, Path(checkpoint))
    return train(engine, plan, steps)


def load_universal(case: Case, universal: str, checkpoint: str, steps: range) -> tuple[list[str], list[float]]:
    """Loads a universal checkpoint with DeepSpeed's own loader.

    Returns:
        What differs from the checkpoint that it was made of, and the losses of the next steps.
    """
    plan = BatchPlan(GLOBAL_BATCH, case.micro, dist.get_world_size())
    engine = build_universal_engine(case, plan)
    path, client_state = engine.ds.load_checkpoint(universal)
    problems = [] if path and client_state["scaletrain"]["step"] == steps.start else [f"{path}: {client_state}"]
    problems += differences(engine, Path(checkpoint))
    part_steps(engine)
    return problems, train(engine, plan, steps)


def build_universal_engine(case: Case, plan: BatchPlan) -> Engine:
    """An engine of the case whose loader takes universal checkpoints."""
    model, optim = ModelConfig(**(bodies.MODEL | case.model)), OptimConfig(**(bodies.OPTIM | case.optim))
    train = TrainConfig(precision=case.precision, micro_batch_size=case.micro, global_batch_size=GLOBAL_BATCH)
    zero: dict[str, Any] = {"stage": case.stage, **bodies.SMALL_BUCKET}
    if case.offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    own = {"zero_optimization": zero, "checkpoint": {"load_universal": True}}
    return Engine(
        lambda: CausalLM(Transformer(model), LossConfig()),
        lambda module: build_optimizer(optim, parameter_groups(module.named_parameters(), optim.weight_decay)),
        merge(own, train, optim, plan.micro_steps, plan.world_size),
        seed=6,  # other weights than those that are loaded
    )


def part_steps(engine: Engine) -> None:
    """DeepSpeed's loader for stage 3 gives all parts of the optimizer one counter, which each of them counts up."""
    for state in base_optimizer(engine.ds, engine.stage).state.values():
        state["step"] = state["step"].clone()


def differences(engine: Engine, checkpoint: Path) -> list[str]:
    """What a live engine holds otherwise than a checkpoint, in bits."""
    state = json.loads((checkpoint / "state.json").read_text())["engine"]
    reader = FragmentReader(checkpoint, state["zero_stage"])
    optimizer, found = base_optimizer(engine.ds, engine.stage), []
    for fragment in live_fragments(engine.ds, engine.stage):
        owned = optimizer.state[fragment.owner]
        live = {kind: owned[kind].view(-1).narrow(0, fragment.offset, fragment.numel) for kind in KINDS[1:]}
        live["weight"] = fragment.master()
        for kind, values in live.items():
            saved = reader.read(fragment.name, kind, fragment.start, fragment.numel)
            saved = torch.zeros(fragment.numel) if saved is None else saved
            if values.dtype != torch.float32 or not values.equal(saved):
                found.append(f"{kind} of {fragment.name}")
        if float(owned["step"]) != state["applied_steps"]:
            found.append(f"step {float(owned['step'])} of {fragment.name}")
    return found
