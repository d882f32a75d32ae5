"""The loop: one for pretraining and for every fine-tune."""

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from scaletrain.engine.engine import Engine
from scaletrain.errors import CheckpointError, DataError, HealthError
from scaletrain.launch.events import append_event
from scaletrain.launch.hang.heartbeat import Heartbeat, Phase
from scaletrain.launch.siblings import mark_trained
from scaletrain.launch.verdicts import Ending, Verdict
from scaletrain.monitors import names
from scaletrain.monitors.throughput import Throughput
from scaletrain.protocols import Callback, StepResult, TrainingState
from scaletrain.training.feed import Feed
from scaletrain.training.signals import KINDS, SAVE_KIND, Sickness, StopRequests

logger = logging.getLogger(__name__)

_PHASES = MappingProxyType({"on_step_end": Phase.CALLBACKS, "on_end": Phase.END, "on_exception": Phase.ERROR})
"""What a rank does while the callbacks are called."""


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
    save_requested: bool = False
    save_s: float = 0.0
    complete_because: str = ""
    heartbeat: Heartbeat = field(default_factory=Heartbeat)
    _unwritten_events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    _writes_events: threading.RLock = field(default_factory=threading.RLock)

    def step_done(self, result: StepResult) -> None:
        """Keeps what a step did; after the first, the keepers need not end ranks that wait for each other."""
        if self.is_main and self.last_step is None:
            mark_trained(self.folder, self.attempt)
        self.last_step = result

    def notify(self, hook: str, *args: Any) -> None:
        """Calls a hook of all callbacks: in their order, and in the reverse order where things end."""
        if hook in _PHASES:
            self.heartbeat.enter(_PHASES[hook])
        ends = hook in ("on_end", "on_exception")
        for callback in reversed(self.callbacks) if ends else self.callbacks:
            getattr(callback, hook)(self, *args)

    def record_event(self, kind: str, **fields: Any) -> None:
        """Appends to events.jsonl; only rank 0 writes. What the file system refuses goes with the next one."""
        if not self.is_main:
            return
        event = {"time_s": time.time(), "step": self.state.step, "attempt": self.attempt, **fields}
        with self._writes_events:
            self._unwritten_events.append((kind, event))
            try:
                while self._unwritten_events:
                    kind, event = self._unwritten_events[0]
                    append_event(self.folder / "events.jsonl", kind, **event)
                    del self._unwritten_events[0]
            except OSError as error:
                logger.error("the event %s cannot be written to events.jsonl: %s", kind, error.strerror)


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
        HealthError: A device is sick, so that nothing can be saved any more, or the training has come to nothing.
    """
    ending = Ending(Verdict.COMPLETE, "all steps are done")
    unreadable: DataError | None = None
    try:
        run.notify("on_start")
        while run.state.step < run.max_steps and not run.complete_because:
            timing.start_step()
            run.heartbeat.enter(Phase.DATA, run.state.step + 1)
            batch, problem = feed.fetch()
            timing.data_ready()
            run.heartbeat.enter(Phase.AGREE)
            # The one collective that decides: all ranks see the same requests at the same border.
            wants = (*stop.pending(run.save_s), problem is not None)
            agreed = engine.agree(batch.micro_batches if batch else (), wants)
            if (asked := _heed(agreed.requests, run, stop, engine)) is not None:
                ending = asked
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
            run.step_done(result)
            metrics = {
                names.TRAIN_LOSS: result.loss,
                names.TRAIN_GRAD_NORM: result.grad_norm if math.isfinite(result.grad_norm) else math.nan,
                names.TRAIN_TARGET_TOKENS: float(agreed.targets),
                names.OPTIM_LR: lr,
                **_by_source(source_names, result.source_nll, agreed.source_targets),
                **timing.metrics(),
            }
            run.notify("on_step_end", metrics)
        ending = _end(run, ending, has_reason=ending.verdict is not Verdict.COMPLETE or unreadable is not None)
    except BaseException as error:
        run.notify("on_exception", error)
        raise
    if unreadable is not None:
        raise unreadable
    return ending


def done_before(step: int, max_steps: int, reason: str) -> Ending | None:
    """How a run that has nothing left to do has ended.

    Args:
        step: Where it stands.
        max_steps: Of the run.
        reason: Why it was complete before its last step; empty where it was not.

    Returns:
        None for a run that goes on.
    """
    if step < max_steps and not reason:
        return None
    beyond = " (it was trained with a larger train.max_steps)" if step > max_steps else ""
    early = f": {reason}" if reason else ""
    logger.info("the run is complete: it is at step %d of %d%s%s", step, max_steps, beyond, early)
    return Ending(Verdict.COMPLETE, reason or "all steps were done before")


def _heed(requests: Sequence[int], run: TrainingRun, stop: StopRequests, engine: Engine) -> Ending | None:
    """How the run ends now, if any rank was asked to; asked to save only, it goes on."""
    asked = [kind for kind, count in zip(KINDS, requests, strict=False) if count]
    if asked and asked[0] is Verdict.SICK_NODE:
        return _leave_nodes(run, engine.gather(stop.sickness))
    if asked:
        ending = Ending(asked[0], stop.reason(asked[0]))
        run.record_event("signal", verdict=ending.verdict.value, reason=ending.reason)
        return ending
    if requests[SAVE_KIND]:
        run.save_requested = True
        run.record_event("save_request", reason="save file")
    return None


def _leave_nodes(run: TrainingRun, told: Sequence[Sickness | None]) -> Ending:
    """How a run ends that is to go on without the nodes that ranks have named; every rank knows what each has told.

    Raises:
        HealthError: What one of them holds must not be saved.
    """
    sick = [one for one in told if one is not None]
    reason = "; ".join(dict.fromkeys(one.ending.reason for one in sick))
    hosts = tuple(sorted({host for one in sick for host in one.ending.hosts}))
    may_save = all(one.may_save for one in sick)
    run.record_event("drain" if may_save else "abort", reason=reason, hosts=hosts)
    if not may_save:
        raise HealthError(f"{reason}. Nothing is saved: the run goes on from the last checkpoint.", hosts)
    return Ending(Verdict.SICK_NODE, reason, hosts)


def _end(run: TrainingRun, ending: Ending, has_reason: bool) -> Ending:
    """Has the callbacks conclude; a run that ends for a reason of its own keeps it where the last save fails."""
    try:
        run.notify("on_end")
    except (OSError, CheckpointError) as error:
        if not has_reason:
            raise
        logger.error("the last save failed, and the run goes on from the one before: %s", error)
        run.notify("on_exception", error)
        return replace(ending, reason=f"{ending.reason}; the last save failed: {error}")
    if ending.verdict is Verdict.COMPLETE and run.complete_because:
        return Ending(ending.verdict, run.complete_because)
    return ending


def _by_source(source_names: Sequence[str], nll: Sequence[float], targets: Sequence[int]) -> dict[str, float]:
    metrics = {}
    for name, source_nll, source_targets in zip(source_names, nll, targets, strict=False):
        metrics[names.of_source(names.TRAIN_TARGET_TOKENS, name)] = float(source_targets)
        if source_targets:
            metrics[names.of_source(names.TRAIN_LOSS, name)] = source_nll / source_targets
    return metrics
