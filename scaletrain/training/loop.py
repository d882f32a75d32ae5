"""The loop: one for pretraining and for every fine-tune."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaletrain.engine.engine import Engine
from scaletrain.errors import DataError
from scaletrain.launch.events import append_event
from scaletrain.launch.verdicts import Ending, Verdict
from scaletrain.monitors import names
from scaletrain.monitors.throughput import Throughput
from scaletrain.protocols import Callback, StepResult, TrainingState
from scaletrain.training.feed import Feed
from scaletrain.training.signals import KINDS, StopRequests

logger = logging.getLogger(__name__)


@dataclass
class TrainingRun:
    """A run under way, as callbacks see it; see ``protocols.Run``."""

    state: TrainingState
    max_steps: int
    folder: Path
    attempt: int
    is_main: bool
    callbacks: Sequence[Callback]
    batch_hash: str = ""
    last_step: StepResult | None = None

    def notify(self, hook: str, *args: Any) -> None:
        """Calls a hook of all callbacks: in their order, and in the reverse order where things end."""
        ends = hook in ("on_end", "on_exception")
        for callback in reversed(self.callbacks) if ends else self.callbacks:
            getattr(callback, hook)(self, *args)

    def record_event(self, kind: str, **fields: Any) -> None:
        """Appends to events.jsonl; only rank 0 writes."""
        if self.is_main:
            append_event(self.folder / "events.jsonl", kind, step=self.state.step, attempt=self.attempt, **fields)


def fit(
    run: TrainingRun,
    engine: Engine,
    feed: Feed,
    learning_rate: Callable[[int], float],
    timing: Throughput,
    stop: StopRequests,
    max_seq_len: int,
    source_names: Sequence[str] = (),
) -> Ending:
    """Trains until the run is complete or asked to end.

    Args:
        run: State and callbacks.
        engine: The model on all ranks.
        feed: This rank's part of each global batch, started at the run's state.
        learning_rate: The schedule, as a function of the step.
        timing: Times the steps.
        stop: Requests to end.
        max_seq_len: Tokens in a sequence.
        source_names: Of the sources whose losses are told one by one.

    Returns:
        ``complete``, or the verdict that was asked for, with the reason.

    Raises:
        DataError: The next step's data cannot be had; the steps before it are saved.
        RollBack: A callback wants the run to go on from an older checkpoint.
        HealthError: A callback found a sick device, or that the training has come to nothing.
    """
    ending = Ending(Verdict.COMPLETE, "all steps are done")
    unreadable: DataError | None = None
    try:
        run.notify("on_start")
        while run.state.step < run.max_steps:
            timing.start_step()
            batch, problem = feed.fetch()
            timing.data_ready()
            # The one collective that decides: all ranks see the same requests at the same border.
            agreed = engine.agree(batch.micro_batches if batch else (), (*stop.pending(), problem is not None))
            asked = [kind for kind, count in zip(KINDS, agreed.requests, strict=False) if count]
            if asked:
                ending = Ending(asked[0], stop.reason(asked[0]))
                run.record_event("signal", verdict=ending.verdict.value, reason=ending.reason)
                break
            if agreed.requests[-1] or batch is None:
                try:
                    feed.settle(problem, run)
                except DataError as error:  # on all ranks: what they have done so far is saved by all
                    unreadable = error
                    break
                continue
            lr = learning_rate(batch.step)
            result = engine.train_step(batch.micro_batches, agreed.targets, batch.step, lr)
            timing.end_step(batch.global_batch_size * max_seq_len)
            state = run.state
            state.step += 1
            state.sequences = batch.first_sequence + batch.global_batch_size
            state.optimizer_steps += result.applied
            state.target_tokens += agreed.targets * result.applied
            run.batch_hash = f"{agreed.checksum:016x}"
            run.last_step = result
            metrics = {
                names.TRAIN_LOSS: result.loss,
                names.TRAIN_GRAD_NORM: result.grad_norm if math.isfinite(result.grad_norm) else math.nan,
                names.TRAIN_TARGET_TOKENS: float(agreed.targets),
                names.OPTIM_LR: lr,
                **_by_source(source_names, result.source_nll, agreed.source_targets),
                **timing.metrics(),
            }
            run.notify("on_step_end", metrics)
        run.notify("on_end")
    except BaseException as error:
        run.notify("on_exception", error)
        raise
    if unreadable is not None:
        raise unreadable
    return ending


def _by_source(source_names: Sequence[str], nll: Sequence[float], targets: Sequence[int]) -> dict[str, float]:
    metrics = {}
    for name, source_nll, source_targets in zip(source_names, nll, targets, strict=False):
        metrics[names.of_source(names.TRAIN_TARGET_TOKENS, name)] = float(source_targets)
        if source_targets:
            metrics[names.of_source(names.TRAIN_LOSS, name)] = source_nll / source_targets
    return metrics
