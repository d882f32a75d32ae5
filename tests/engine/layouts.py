"""Whether every way in which DeepSpeed lays out a training state holds the same state, bit for bit.

A canonical form (weights, moments, number of updates) comes out of plain PyTorch. It is loaded into a live engine of
each layout, read back from there, saved, and read back from the files. What is exact for each layout with one form is
exact for each pair of layouts: the form stands between them.

    python -m tests.engine.layouts     checks all of them; the default tests take a part
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor

from scaletrain.checkpoint.fragments import FragmentReader
from scaletrain.config.batch_plan import BatchPlan
from scaletrain.config.schema import ModelConfig, OptimConfig
from scaletrain.engine.engine import Engine
from scaletrain.engine.partitions import base_optimizer, live_fragments
from scaletrain.engine.randomness import derive_seed
from scaletrain.model.transformer import Transformer
from scaletrain.optim.schedules import learning_rate
from tests.distributed import run_on_ranks
from tests.engine import bodies
from tests.engine.bodies import GLOBAL_BATCH, Case

KINDS = ("weight", "exp_avg", "exp_avg_sq")
Offload = Literal["", "optimizer", "all"]
# Updates in the canonical form, and steps that each layout goes on with it.
UPDATES, NEXT_STEPS = 5, 2
MICRO = 2
# What sums in another order, and 8 bits of a number in bf16, make of a loss in two steps. Lost moments make 2e-2.
TOLERANCES = {"fp32": 1e-5, "bf16": 5e-3}

LAYOUTS: tuple[tuple[int, Offload], ...] = (
    (0, ""),
    (1, ""),
    (1, "optimizer"),
    (2, ""),
    (2, "optimizer"),
    (3, ""),
    (3, "optimizer"),
    (3, "all"),
)


@dataclass(frozen=True)
class Layout:
    """One way in which a training state is spread."""

    stage: int
    offload: Offload
    precision: str

    def case(self) -> Case:
        """The engine of it."""
        return Case(stage=self.stage, precision=self.precision, micro=MICRO, offload=self.offload)


def all_layouts() -> list[Layout]:
    """Every stage, offload and precision."""
    return [Layout(stage, offload, precision) for (stage, offload), precision in product(LAYOUTS, ("fp32", "bf16"))]


class Canonical:
    """A training state as whole fp32 tensors, which an engine reads like a checkpoint."""

    def __init__(self, tensors: Mapping[str, Mapping[str, Tensor]], losses: Sequence[float]) -> None:
        """Holds a state.

        Args:
            tensors: For each kind the tensors by the names of the module that DeepSpeed wraps.
            losses: Of the next steps in plain PyTorch.
        """
        self.tensors = tensors
        self.losses = losses

    def read(self, name: str, kind: str, start: int, numel: int) -> Tensor:
        """A range of a flattened tensor."""
        return self.tensors[kind][name].flatten()[start : start + numel]

    def state(self) -> dict[str, object]:
        """What stands in a checkpoint's state.json beside it."""
        return {
            "zero_stage": 0,
            "world_size": 1,
            "applied_steps": UPDATES,
            "global_steps": UPDATES,
            "moments": list(KINDS[1:]),
            "loss_scale": {},
            "shapes": {name: list(tensor.shape) for name, tensor in self.tensors["weight"].items()},
            "tied": {"model.output.weight": "model.embedding.weight"},
        }


@cache
def canonical() -> Canonical:
    """The state after some steps of plain PyTorch in fp32; the same in each process."""
    optim = OptimConfig(**bodies.OPTIM)
    torch.manual_seed(derive_seed("init", 5))
    model = Transformer(ModelConfig(**bodies.MODEL))
    named = {f"model.{name}": parameter for name, parameter in model.named_parameters()}
    decayed = [p for name, p in named.items() if p.ndim == 2 and "position" not in name]
    kept = [p for name, p in named.items() if p.ndim < 2 or "position" in name]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": kept, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    losses: list[float] = []
    tensors: dict[str, dict[str, Tensor]] = {}
    for step in range(UPDATES + NEXT_STEPS):
        if step == UPDATES:
            tensors = {kind: {} for kind in KINDS}
            for name, parameter in named.items():
                tensors["weight"][name] = parameter.detach().clone()
                for kind in KINDS[1:]:
                    tensors[kind][name] = optimizer.state[parameter][kind].clone()
        rows = [bodies.sequence(step * GLOBAL_BATCH + i) for i in range(GLOBAL_BATCH)]
        batch = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
        logits_BVT = model(batch["tokens"], batch["positions"], batch["documents"]).transpose(1, 2)
        loss = torch.nn.functional.cross_entropy(logits_BVT, batch["targets"], ignore_index=-100)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), optim.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(optim, step, 20)
        optimizer.step()
    return Canonical(tensors, losses[UPDATES:])


def deviations(layouts: Sequence[Layout], folder: str) -> list[str]:
    """Takes the canonical form through layouts on this number of ranks; what differs afterwards, in words."""
    found = []
    for number, layout in enumerate(layouts):
        place = Path(folder) / f"{dist.get_world_size()}-{number}"
        found += [f"{layout} on {dist.get_world_size()} ranks: {problem}" for problem in _check(layout, place)]
    return found


def _check(layout: Layout, folder: Path) -> Iterator[str]:
    form = canonical()
    plan = BatchPlan(GLOBAL_BATCH, MICRO, dist.get_world_size())
    engine = bodies.build_engine(layout.case(), plan)
    engine.load(form, form.state())
    yield from _compare_live(engine, form)
    yield from _compare_forward_weights(engine, form)
    bodies.save(engine, folder)
    yield from _compare_files(folder, form)
    losses = _train(engine, plan, range(UPDATES, UPDATES + NEXT_STEPS))
    apart = max(abs(loss - expected) for loss, expected in zip(losses, form.losses, strict=True))
    if not apart <= TOLERANCES[layout.precision]:
        yield f"the next losses are {apart:.2g} from those of plain PyTorch"
    engine.load(form, form.state())  # as a run that goes back does
    yield from _compare_live(engine, form)
    yield from _compare_forward_weights(engine, form)


def _compare_live(engine: Engine, form: Canonical) -> Iterator[str]:
    optimizer = base_optimizer(engine.ds, engine.stage)
    owned: list[tuple[str, int, int]] = []
    for fragment in live_fragments(engine.ds, engine.stage):
        owned.append((fragment.name, fragment.start, fragment.numel))
        state = optimizer.state[fragment.owner]
        live = {kind: state[kind].view(-1).narrow(0, fragment.offset, fragment.numel) for kind in KINDS[1:]}
        live["weight"] = fragment.master()
        for kind, values in live.items():
            expected = form.read(fragment.name, kind, fragment.start, fragment.numel)
            if values.dtype != torch.float32 or not values.equal(expected):
                yield f"live {kind} of {fragment.name} differs"
        if float(state["step"]) != UPDATES:
            yield f"live step of {fragment.name} is {float(state['step'])}"
    everywhere: list[list[tuple[str, int, int]]] = [[]] * dist.get_world_size()
    dist.all_gather_object(everywhere, owned)
    ranges = sorted(everywhere[0] if engine.stage == 0 else [range_ for rank in everywhere for range_ in rank])
    for name, tensor in form.tensors["weight"].items():
        end = 0
        for _, start, numel in (range_ for range_ in ranges if range_[0] == name):
            end = start + numel if start == end else -1
        if end != tensor.numel():
            yield f"the ranks do not own each element of {name} once"


def _compare_forward_weights(engine: Engine, form: Canonical) -> Iterator[str]:
    """By name and whole, as the next forward pass sees them: found without the project's own description."""
    for name, parameter in engine.ds.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=engine.stage == 3):
            if not parameter.detach().equal(form.tensors["weight"][name].to(parameter.dtype)):
                yield f"the forward pass sees another {name}"
    tied = engine.ds.module.model
    if tied.output.weight is not tied.embedding.weight:
        yield "the tied weights have parted"


def _compare_files(folder: Path, form: Canonical) -> Iterator[str]:
    state = json.loads((folder / "state.json").read_text())["engine"]
    reader = FragmentReader(folder, state["zero_stage"])
    if state["applied_steps"] != UPDATES:
        yield f"{state['applied_steps']} updates were saved"
    if set(reader.names) != set(form.tensors["weight"]):
        yield f"the files hold {reader.names}"
    for kind, (name, tensor) in product(KINDS, form.tensors["weight"].items()):
        read = reader.read(name, kind, 0, tensor.numel())
        if read is None or not read.equal(form.tensors[kind][name].flatten()):
            yield f"saved {kind} of {name} differs"


def save_and_go_on(layout: Layout, cut: int, end: int, folder: str) -> list[float]:
    """Trains from the start, saves after ``cut`` steps, and returns the losses of those after that."""
    plan = BatchPlan(GLOBAL_BATCH, MICRO, dist.get_world_size())
    engine = bodies.build_engine(layout.case(), plan)
    _train(engine, plan, range(cut))
    bodies.save(engine, Path(folder))
    return _train(engine, plan, range(cut, end))


def load_and_go_on(layout: Layout, cut: int, end: int, folder: str) -> list[float]:
    """The losses of a run that loads what another has saved after ``cut`` steps."""
    plan = BatchPlan(GLOBAL_BATCH, MICRO, dist.get_world_size())
    engine = bodies.build_engine(layout.case(), plan)
    bodies.load(engine, Path(folder))
    return _train(engine, plan, range(cut, end))


def _train(engine: Engine, plan: BatchPlan, steps: range) -> list[float]:
    optim, losses = OptimConfig(**bodies.OPTIM), []
    for step in steps:
        batch = bodies.micro_batches(plan, dist.get_rank(), step)
        agreed = engine.agree(batch, (False,))
        losses.append(engine.train_step(batch, agreed.targets, step, learning_rate(optim, step, 20)).loss)
    return losses


def main() -> int:
    """Checks every layout on 1 to 4 ranks; returns the exit code."""
    begin_s, layouts, found = time.monotonic(), all_layouts(), []
    with TemporaryDirectory() as folder:
        for world_size in (1, 2, 3, 4):
            ranks = run_on_ranks(world_size, deviations, layouts, folder, timeout_s=600)
            found += [f"rank {rank}: {problem}" for rank, problems in enumerate(ranks) for problem in problems]
            print(f"{world_size} ranks: {len(layouts)} layouts, {time.monotonic() - begin_s:.0f} s", flush=True)
    print("\n".join(found) or "each layout holds the canonical form, bit for bit")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
