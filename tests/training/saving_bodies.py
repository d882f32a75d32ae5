"""What the ranks of the tests of saving do: a few real steps, with saves that are held up, refused or asked for."""

import json
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from scaletrain.checkpoint.fragments import FragmentReader
from scaletrain.checkpoint.retention import Retention
from scaletrain.checkpoint.weights import read_weights
from scaletrain.config.batch_plan import BatchPlan
from scaletrain.config.schema import CheckpointConfig
from scaletrain.engine.engine import Engine
from scaletrain.engine.snapshot import HostCopies
from scaletrain.errors import CheckpointError, ConfigError
from scaletrain.launch.events import read_events
from scaletrain.launch.run_dir import RunDirectory
from scaletrain.monitors.jsonl_writer import JsonlWriter
from scaletrain.ranks import Ranks
from scaletrain.training.checkpointing import Checkpointing
from scaletrain.training.lineage import Lineage
from scaletrain.training.loop import TrainingRun
from scaletrain.training.resuming import resume
from scaletrain.training.saving import Saver
from scaletrain.training.tiers import Tier, open_tiers
from tests.engine import bodies as engine_bodies
from tests.engine.bodies import GLOBAL_BATCH, Case


@dataclass(frozen=True)
class Plan:
    """A short run whose saves are looked at.

    Attributes:
        folder: The run directory.
        case: The engine.
        steps: How many are done.
        every_steps: Interval of shared saves.
        local: Interval of saves to a folder of each node; each rank is a node of its own. 0 for none.
        background: Whether files are written beside the training.
        full_disk: Steps during which rank 1 cannot write more than a few bytes into a file.
        save_requested_at: Step at which a user has asked for a checkpoint.
        goes_on: Whether the run has more steps than these: it is asked to stop.
        lineage: How the run has come to where it is.
        attempt: Number of this start.
    """

    folder: str
    case: Case = field(default_factory=Case)
    steps: int = 4
    every_steps: int = 2
    local: int = 0
    background: bool = True
    full_disk: range = range(0)
    save_requested_at: int | None = None
    goes_on: bool = False
    lineage: Lineage = field(default_factory=Lineage)
    attempt: int = 1


def tiers_of(plan: Plan) -> list[Tier]:
    """The places for checkpoints; each rank stands for a node."""
    tiers = [Tier("shared", Path(plan.folder) / "checkpoints", plan.every_steps, Retention(2))]
    if plan.local:
        tiers.append(
            Tier("local", node_folder(plan.folder, dist.get_rank()), plan.local, Retention(2), dist.get_rank())
        )
    return tiers


def node_folder(folder: str, node: int) -> Path:
    """A node's own disk."""
    return Path(folder) / f"node{node}" / "run"


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The system refuses to make a file of this process longer, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def train(plan: Plan) -> dict[str, Any]:
    """Goes on with a run and saves; returns where it began, the losses, and the weights that were live at each step."""
    cut = BatchPlan(GLOBAL_BATCH, plan.case.micro, dist.get_world_size())
    engine = engine_bodies.build_engine(plan.case, cut)
    tiers = tiers_of(plan)
    folder, rank = Path(plan.folder), dist.get_rank()
    folder.mkdir(exist_ok=True)
    records = [JsonlWriter(folder / "metrics.jsonl", plan.attempt)] if rank == 0 else []
    checkpointing = Checkpointing(Saver(engine, plan.background, records), tiers, "")
    resumed = resume(engine, tiers, "full", [checkpointing], place(), plan.lineage)
    checkpointing.note_resumed(resumed.state.step, resumed.folder, [path for path, _ in resumed.refused])
    run = TrainingRun(resumed.state, plan.steps + plan.goes_on, folder, plan.attempt, rank == 0, [checkpointing])
    checkpointing.on_start(run)
    begun_at, losses = run.state.step, []
    while run.state.step < plan.steps:
        step = run.state.step
        losses.append(train_step(engine, cut, step))
        run.state.step += 1
        run.save_requested = plan.save_requested_at == run.state.step
        for record in records:
            record.write(run.state.step, {"train/loss": losses[-1]})
        refuses = run.state.step in plan.full_disk and rank == 1
        with files_of_at_most(5000) if refuses else files_of_at_most(resource.RLIM_INFINITY):
            checkpointing.on_step_end(run, {"train/grad_norm": 1.0})
            if refuses:
                checkpointing.settle(run)
        if not refuses and run.state.step in plan.full_disk:
            checkpointing.settle(run)
    checkpointing.on_end(run)
    return {
        "begun_at": begun_at,
        "from": str(resumed.folder),
        "refused": [(str(path), reason) for path, reason in resumed.refused],
        "losses": losses,
        "fits": rank > 0 or all(weights_fit(path) for path in tiers[0].checkpoints.glob("step_*")),
    }


def weights_fit(folder: Path) -> bool:
    """Whether a checkpoint can be read as a whole."""
    return all(torch.isfinite(weight).all() for weight in read_weights(folder).values())


def train_step(engine: Engine, cut: BatchPlan, step: int) -> float:
    batch = engine_bodies.micro_batches(cut, dist.get_rank(), step)
    return engine.train_step(batch, engine.agree(batch, ()).targets, step, 3e-3).loss


def place() -> Ranks:
    """Each rank is a node of its own."""
    return Ranks(dist.get_rank(), 0, dist.get_world_size(), 1, f"node{dist.get_rank()}")


def save_twice(folder: str, case: Case) -> None:
    """Saves the same state at once and beside the training, whose next steps must not reach the files."""
    cut = BatchPlan(GLOBAL_BATCH, case.micro, dist.get_world_size())
    engine = engine_bodies.build_engine(case, cut)
    for step in range(2):
        train_step(engine, cut, step)
    for name, background in (("at_once", False), ("beside", True)):
        saver = Saver(engine, background, [])
        tier = Tier("shared", Path(folder) / name, 1, Retention(2))
        assert saver.begin(tier, 2, lambda state, save_id: {}, prunes=True) is None
        if background:
            for step in range(2, 4):
                train_step(engine, cut, step)
        outcome = saver.advance(waits=True)
        assert outcome is not None and outcome.problem is None, outcome


def copies_share_what_is_shared() -> None:
    """A copy keeps types, shapes, strides, sharing and gradients' flags, and does not follow its original."""
    base = torch.arange(12, dtype=torch.float32)
    content = {
        "view": base[2:8].view(2, 3).t(),
        "whole": base,
        "parameter": nn.Parameter(torch.ones(3, dtype=torch.bfloat16)),
        "empty": torch.empty(0, 4),
        "list": [torch.tensor(3.0), (1, "two", None)],
    }
    copies = HostCopies()
    copied = copies.take(content)
    expected = {key: value.clone() for key, value in content.items() if isinstance(value, Tensor)}
    base.zero_()
    for key, value in expected.items():
        assert torch.equal(copied[key], value) and copied[key].stride() == content[key].stride()  # type: ignore[attr-defined]
    assert copied["view"].untyped_storage().data_ptr() == copied["whole"].untyped_storage().data_ptr()
    assert type(copied["parameter"]) is nn.Parameter and copied["parameter"].requires_grad
    assert copied["list"][1] == (1, "two", None)
    taken = copies.allocated_bytes
    copies.take(content)
    assert copies.allocated_bytes == taken, "buffers are not used again"


def events(folder: str) -> list[tuple[str, int, str]]:
    """What the run wrote into its diary: kind, step and place."""
    found = read_events(Path(folder) / "events.jsonl")
    return [(event["event"], event["step"], event.get("tier", "")) for event in found]


def load_alone_broken(folder: str, case: Case, breaks: int) -> list[str]:
    """Loads a checkpoint on all ranks, of which one cannot read its part; returns what each raised."""
    cut = BatchPlan(GLOBAL_BATCH, case.micro, dist.get_world_size())
    engine = engine_bodies.build_engine(case, cut)
    newest = sorted((Path(folder) / "checkpoints").glob("step_*"))[-1]
    own = newest
    if dist.get_rank() == breaks:
        own = Path(folder) / "torn"
        shutil.copytree(newest, own)
        victim = max(own.glob("*.pt"), key=lambda path: path.stat().st_size)
        os.truncate(victim, victim.stat().st_size // 2)
    dist.barrier()
    state = json.loads((newest / "state.json").read_text())["engine"]
    try:
        engine.load(FragmentReader(own, state["zero_stage"]), state)
    except CheckpointError as error:
        return [str(error)]
    return []


def open_places(run_dir: str, local_dir: str) -> str:
    """Opens the places of a run whose nodes are its ranks; returns what was raised."""
    folder = RunDirectory(Path(run_dir))
    if dist.get_rank() == 0:
        folder.claim()
    dist.barrier()
    try:
        open_tiers(CheckpointConfig(local_dir=Path(local_dir), local_every_steps=1), folder, place())
    except ConfigError as error:
        return str(error)
    finally:
        dist.barrier()
        if dist.get_rank() == 0:
            folder.release()
    return ""
