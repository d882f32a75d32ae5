"""What the ranks of the loop's tests do: train the engine tests' tiny model through ``fit``."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor

from scaletrain.checkpoint.layout import STATE
from scaletrain.checkpoint.retention import Retention
from scaletrain.checkpoint.weights import load_weights
from scaletrain.config.batch_plan import BatchPlan
from scaletrain.config.schema import StabilityConfig
from scaletrain.data.loader import StepBatch
from scaletrain.engine.engine import Engine
from scaletrain.errors import DataError, ScaletrainError
from scaletrain.monitors.throughput import Throughput
from scaletrain.protocols import Callback, Run, TrainingState
from scaletrain.ranks import Ranks
from scaletrain.training.checkpointing import Checkpointing
from scaletrain.training.feed import Feed
from scaletrain.training.lineage import Lineage
from scaletrain.training.loop import TrainingRun, fit
from scaletrain.training.resuming import resume
from scaletrain.training.saving import Saver
from scaletrain.training.signals import StopRequests
from scaletrain.training.stability import Stability
from scaletrain.training.tiers import Tier
from tests.engine import bodies as engine_bodies
from tests.engine.bodies import GLOBAL_BATCH, MAX_SEQ_LEN, Case

_HANDLED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


@dataclass(frozen=True)
class Job:
    """One start of a run.

    Attributes:
        folder: The run directory.
        case: The engine.
        max_steps: Where the run is complete.
        every_steps: Interval of checkpoints.
        signal_at: (rank, step, number): that rank gets the signal in that step.
        bad_data_at: (rank, step): that rank cannot read its data for that step.
        raise_at: Step after which a callback of rank 0 raises.
        complete_at: Step after which a callback of all ranks finds the run complete.
        end_raises: What a callback raises at the end, on all ranks.
        save_at: Step in which somebody puts a file ``save`` into the run directory.
        ends_in_s: When the job ends, in seconds from the start.
        nan_from: Step from which a gradient of rank 0 is NaN.
    """

    folder: str
    case: Case = field(default_factory=Case)
    max_steps: int = 6
    every_steps: int = 2
    keep_last: int = 2
    background: bool = True
    signal_at: tuple[int, int, int] | None = None
    bad_data_at: tuple[int, int] | None = None
    raise_at: int | None = None
    complete_at: int | None = None
    nan_from: int | None = None
    end_raises: type[Exception] | None = None
    save_at: int | None = None
    ends_in_s: float | None = None


class Recorder(Callback):
    """Notes each hook with the step it was called at, and counts its steps over restarts."""

    def __init__(
        self,
        name: str,
        notes: list[str],
        raise_at: int | None = None,
        complete_at: int | None = None,
        end_raises: type[Exception] | None = None,
    ) -> None:
        self._name = name
        self._notes = notes
        self._raise_at = raise_at
        self._complete_at = complete_at
        self._end_raises = end_raises
        self.seen_steps = 0
        self.losses: list[float] = []

    def on_start(self, run: Run) -> None:
        self._note("start", run)

    def on_step_end(self, run: Run, metrics: dict[str, float]) -> None:
        self._note("step", run)
        self.seen_steps += 1
        self.losses.append(metrics["train/loss"])
        # What an earlier callback adds, the next one sees.
        metrics[f"{self._name}/steps"] = float(self.seen_steps)
        if self._name == "second":
            assert "first/steps" in metrics
        if run.state.step == self._raise_at:
            raise ValueError("a callback that fails")
        if run.state.step == self._complete_at:
            run.complete_because = "there is nothing left to learn"

    def on_save(self, run: Run, folder: Path) -> None:
        assert (folder / "COMPLETE").exists()
        self._note("save", run)

    def on_exception(self, run: Run, error: BaseException) -> None:
        self._note(f"exception {type(error).__name__}", run)

    def on_end(self, run: Run) -> None:
        self._note("end", run)
        if self._end_raises is not None:
            raise self._end_raises("no space left")

    def state_dict(self) -> dict[str, Any]:
        return {"seen_steps": self.seen_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen_steps = state.get("seen_steps", 0)

    def _note(self, what: str, run: Run) -> None:
        self._notes.append(f"{self._name} {what} {run.state.step}")


@contextlib.contextmanager
def keep_signal_handlers() -> Iterator[None]:
    """The ranks outlive a test: one that ignored SIGTERM would not end with the session."""
    before = {number: signal.getsignal(number) for number in _HANDLED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def batches(job: Job, engine: Engine, plan: BatchPlan, first_step: int) -> Iterator[StepBatch]:
    """This rank's batches, with the mishaps of the job."""
    rank, step = dist.get_rank(), first_step
    while True:
        if job.signal_at and job.signal_at[:2] == (rank, step):
            os.kill(os.getpid(), job.signal_at[2])
        if job.save_at == step and rank == 0:
            (Path(job.folder) / "save").touch()
        if job.bad_data_at == (rank, step):
            raise DataError(f"shard of rank {rank} is damaged")
        if job.nan_from is not None and rank == 0 and step == job.nan_from:
            engine_bodies.poison(engine)
        first, size = step * plan.global_batch_size, plan.global_batch_size
        yield StepBatch(step, first, size, engine_bodies.micro_batches(plan, rank, step))
        step += 1


def this_place() -> Ranks:
    """The place of this rank, all of them on one node."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    return Ranks(rank, rank, world_size, world_size, "node")


def feed_of(stream: Iterator[StepBatch], engine: Engine, state: TrainingState) -> Feed:
    """Feeds the loop from a stream that needs no dataset."""
    feed = Feed(lambda skipped: None, lambda dataset, state: stream, engine, may_skip=False)  # type: ignore[arg-type, return-value]
    feed.start(state)
    return feed


def start(job: Job) -> dict[str, Any]:
    """Starts the job's run or goes on with it; returns what a test looks at."""
    plan = BatchPlan(GLOBAL_BATCH, job.case.micro, dist.get_world_size())
    engine = engine_bodies.build_engine(job.case, plan)
    notes: list[str] = []
    first = Recorder("first", notes, job.raise_at if dist.get_rank() == 0 else None, job.complete_at)
    second = Recorder("second", notes, end_raises=job.end_raises)
    folder = Path(job.folder)
    tier = Tier("shared", folder / "checkpoints", job.every_steps, Retention(job.keep_last))
    saver = Saver(engine, job.background, [])
    stability = Stability(StabilityConfig(bad_steps=5), (), lambda run, step: None, lambda sequences: [])
    callbacks = (first, second, stability, Checkpointing(saver, [tier], "resolved: true\n"))
    state = resume(engine, [tier], "full", callbacks, this_place(), Lineage()).state
    begun_at = state.step
    run = TrainingRun(state, job.max_steps, folder, 1, dist.get_rank() == 0, callbacks)
    timing = Throughput(1.0, None, dist.get_world_size())
    verdict, reason, error = "", "", ""
    with keep_signal_handlers():
        end_s = None if job.ends_in_s is None else time.time() + job.ends_in_s
        stop = StopRequests(folder, watch_file=run.is_main, end_s=end_s)
        feed = feed_of(batches(job, engine, plan, state.step), engine, state)
        try:
            ending = fit(run, engine, feed, lambda step: 3e-3, timing, stop, MAX_SEQ_LEN)
            verdict, reason = str(ending.verdict), ending.reason
        except (ScaletrainError, ValueError, OSError) as raised:
            error = f"{type(raised).__name__}: {raised}"
        finally:
            stop.close()
    return {
        "verdict": verdict,
        "reason": reason,
        "error": error,
        "begun_at": begun_at,
        "state": state.to_json(),
        "notes": notes,
        "losses": first.losses,
        "seen_steps": first.seen_steps,
    }


def train_and_compare_weights(job: Job) -> list[str]:
    """Trains, saves, and returns the names of weights that the checkpoint holds otherwise than the live model."""
    plan = BatchPlan(GLOBAL_BATCH, job.case.micro, dist.get_world_size())
    engine = engine_bodies.build_engine(job.case, plan)
    tier = Tier("shared", Path(job.folder) / "checkpoints", 0, Retention(2))
    checkpointing = Checkpointing(Saver(engine, job.background, []), [tier], "")
    run = TrainingRun(TrainingState(), 9, Path(job.folder), 1, dist.get_rank() == 0, ())
    for step in range(2):
        batch = engine_bodies.micro_batches(plan, dist.get_rank(), step)
        engine.train_step(batch, engine.agree(batch, ()).targets, step, 3e-3)  # type: ignore[arg-type]
    run.state.step = 2
    checkpointing.on_end(run)
    saved = load_weights(Path(job.folder) / "checkpoints")
    live = live_weights(engine)
    assert saved.keys() == live.keys()
    return [name for name, weight in live.items() if not torch.equal(weight.float(), saved[name])]


def live_weights(engine: Engine) -> dict[str, Tensor]:
    """All weights of the live model by the names of its state_dict, gathered from all ranks."""
    model = engine.ds.module.model
    with deepspeed.zero.GatheredParameters(list(model.parameters()), enabled=engine.stage == 3):
        return {name: weight.detach().clone() for name, weight in model.state_dict().items()}


def saved_state(folder: Path) -> dict[str, Any]:
    """state.json of a checkpoint."""
    return dict(json.loads((folder / STATE).read_text()))
