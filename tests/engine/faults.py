"""Faults of a rank, put where a sick device would make them, and what the ranks of their tests do."""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from scaletrain.config.batch_plan import BatchPlan
from scaletrain.engine.engine import Engine
from scaletrain.engine.equality import Difference
from scaletrain.engine.partitions import base_optimizer, live_fragments, moment_keys
from scaletrain.protocols import StepResult
from tests.engine.bodies import GLOBAL_BATCH, Case, build_engine, micro_batches

Kind = Literal["gradient", "loss", "reduction"]
NAN = float("nan")


@contextlib.contextmanager
def fault(engine: Engine, kind: Kind, times: int = 1) -> Iterator[None]:
    """Makes numbers of this rank NaN, in its first backward or forward passes.

    Args:
        engine: This rank's.
        kind: ``gradient``: before anybody looks at it; ``reduction``: behind where the rank looks at its own;
            ``loss``: the loss alone, with gradients that are finite.
        times: In how many passes.
    """
    left = [times]

    def spoil(value: Tensor) -> Tensor:
        left[0] -= 1
        return value * NAN if left[0] >= 0 else value

    if kind == "loss":
        handle = engine.ds.module.register_forward_hook(
            lambda module, args, terms: terms._replace(nll_B=spoil(terms.nll_B))
        )
    else:
        parameter = list(engine.ds.module.parameters())[1]
        handle = parameter.register_hook(spoil)
        if kind == "gradient":
            hooks = parameter._backward_hooks
            assert hooks is not None
            # They run as they were put into the underlying dict, whatever the order of the OrderedDict says.
            others = {number: hook for number, hook in hooks.items() if number != handle.id}
            mine = hooks[handle.id]
            hooks.clear()
            hooks.update({handle.id: mine, **others})
    try:
        yield
    finally:
        handle.remove()


def state_of(engine: Engine) -> str:
    """Hash of all that a step changes on this rank: masters, moments, counts of updates, weights."""
    optimizer = base_optimizer(engine.ds, engine.stage)
    tensors = [fragment.master() for fragment in live_fragments(engine.ds, engine.stage)]
    for state in optimizer.state.values():
        tensors += [state[key] for key in (*moment_keys(optimizer), "step") if key in state]
    # Of stage 3 this rank's part: whether the whole is gathered at the moment is no part of the state.
    tensors += [getattr(parameter, "ds_tensor", parameter) for parameter in engine.ds.module.parameters()]
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def train_with(
    case: Case, steps: Sequence[int], kind: Kind | None = None, times: int = 1, rank: int = 1
) -> tuple[list[StepResult], str, bool]:
    """Trains some steps; where a kind is given, with a fault of a rank in step 1.

    Returns:
        The results, the hash of the state at the end, and whether step 1 left the state as it was.
    """
    plan = BatchPlan(GLOBAL_BATCH, case.micro, dist.get_world_size())
    engine = build_engine(case, plan)
    results, kept = [], False
    for step in steps:
        batch = micro_batches(plan, dist.get_rank(), step)
        targets = engine.agree(batch, ()).targets
        faulty = kind is not None and step == 1 and dist.get_rank() == rank
        before = state_of(engine)
        with fault(engine, kind, times) if faulty and kind else contextlib.nullcontext():
            results.append(engine.train_step(batch, targets, step, 3e-3))
        kept = before == state_of(engine) if step == 1 else kept
    return results, state_of(engine), kept


def compare_faulty_runs(case: Case) -> dict[str, Any]:
    """Trains the same steps without faults, with some that pass and with some that stay."""
    case = replace(case, model={"dropout": 0.1})
    clean, clean_state, _ = train_with(case, (0, 1, 2))
    found: dict[str, Any] = {}
    for kind in ("gradient", "loss", "reduction"):
        results, state, _ = train_with(case, (0, 1, 2), kind)
        found[kind] = {
            "faults": [(fault.rank, fault.local_rank, fault.reason) for fault in results[1].faults],
            "recomputed": [result.recomputed for result in results],
            "equal": state == clean_state and [r.loss for r in results] == [r.loss for r in clean],
        }
    _, left_out_state, _ = train_with(case, (0, 2))
    for kind in ("gradient", "loss"):
        results, state, kept = train_with(case, (0, 1, 2), kind, times=1000)
        found[f"{kind} stays"] = {
            "applied": [result.applied for result in results],
            "kept": kept,
            "equal": state == left_out_state,
            "ranks": [fault.rank for fault in results[1].faults],
        }
    return found


def overflow(case: Case) -> list[StepResult]:
    """fp16, whose loss scale is too high at first."""
    return train_with(case, range(12))[0]


def flip_and_compare(case: Case, flips: Sequence[int]) -> dict[str, tuple[Difference, ...]]:
    """Compares the ranks after a step: as they are, with another state, and with a bit flipped in weights and moments.

    Args:
        case: The engine.
        flips: Ranks that flip a bit.
    """
    plan = BatchPlan(GLOBAL_BATCH, case.micro, dist.get_world_size())
    engine = build_engine(case, plan)
    batch = micro_batches(plan, dist.get_rank(), 0)
    engine.train_step(batch, engine.agree(batch, ()).targets, 0, 3e-3)
    faulty = dist.get_rank() in flips
    found = {
        "clean": engine.find_differences("state"),
        "state": engine.find_differences("another" if faulty else "state"),
    }
    last = list(engine.ds.module.parameters())[-1]
    tensors = {"weights": last}
    if case.stage == 0:
        tensors["moments"] = engine.ds.optimizer.state[last]["exp_avg_sq"]
    for what, tensor in tensors.items():
        bits = tensor.detach().view(-1).view(torch.int16)
        bits[-1] ^= 1 if faulty else 0
        found[what] = engine.find_differences("state")
        bits[-1] ^= 1 if faulty else 0
    return found
