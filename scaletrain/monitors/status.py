"""How a run stands, as facts: a pure function of what was observed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median

from scaletrain.monitors import names
from scaletrain.monitors.goodput_summary import COMPLETE, RUNNING, Summary, summarize
from scaletrain.monitors.run_history import last_failed_start, saved_step, whole
from scaletrain.monitors.run_records import Record, number
from scaletrain.monitors.status_records import Observed

STARTING, DIED, NO_START = "starting", "ended without a verdict", "not started yet"
_MEAN_STEPS = 20
_SHOWN_ATTEMPTS = 3


@dataclass(frozen=True)
class JobStatus:
    """The job of a run on a cluster.

    Attributes:
        job_id: Slurm's number.
        name: Its name; empty where nobody told.
        state: What Slurm's queue says; empty where it was not asked, or knows the job no more.
        reason: Why it waits; empty where it does not.
        nodes: Of the last launch, or of the job; none while it waits.
        spares: Nodes in reserve.
        excluded: Nodes that it has to avoid.
        restart: How many times it was requeued.
        launch: Number of the last launch; None before the first.
        start_s: Unix time at which a waiting job is expected to start; None where that is not known.
        end_s: Unix time of its end; None without a limit.
        decision: What its supervisor decided last, and why; empty before the first decision and after a new launch.
    """

    job_id: str
    name: str
    state: str
    reason: str
    nodes: tuple[str, ...]
    spares: tuple[str, ...]
    excluded: tuple[str, ...]
    restart: int | None
    launch: int | None
    start_s: float | None
    end_s: float | None
    decision: str


@dataclass(frozen=True)
class Training:
    """Where training stands, at the last step that was written down.

    Attributes:
        step: The step.
        max_steps: Steps of the whole run; None where the configuration cannot be read.
        tokens: Tokens consumed; None where that is not known.
        loss: Its loss; None where it is no finite number.
        mean_loss: Mean of the last steps' losses, 20 at most.
        lr: Learning rate.
        tokens_per_s: Tokens of all ranks per second.
        mfu: Share of the peak, 0 to 1.
        step_s: Median duration of a step, in seconds.
        between_s: Mean time from step to step, in seconds, with evaluations and saves.
        longest_gap_s: Longest time between two of the last steps.
        age_s: Since that step.
        validation_loss: The last one.
        validation_step: Where it was measured.
    """

    step: int
    max_steps: int | None
    tokens: int | None
    loss: float | None
    mean_loss: float | None
    lr: float | None
    tokens_per_s: float | None
    mfu: float | None
    step_s: float | None
    between_s: float | None
    longest_gap_s: float
    age_s: float
    validation_loss: float | None
    validation_step: int | None


@dataclass(frozen=True)
class CheckpointStatus:
    """The last checkpoint in the run directory, and the next one.

    Attributes:
        step: The last one's; None before the first.
        age_s: Since it was complete.
        size_bytes: Its size.
        next_step: Where the next one is due; None where the run does not go on, or the interval is not known.
        next_in_s: How long until then, at the measured speed.
    """

    step: int | None
    age_s: float | None
    size_bytes: int | None
    next_step: int | None
    next_in_s: float | None


@dataclass(frozen=True)
class AttemptStatus:
    """One start of the run: its number, the step that it went on from, and how and why it ended."""

    number: int
    from_step: int | None
    verdict: str
    reason: str


@dataclass(frozen=True)
class Warned:
    """Something to look at: ``is_grave`` where the run does not go on, or is about to lose something."""

    text: str
    is_grave: bool


@dataclass(frozen=True)
class Status:
    """How a run stands.

    Attributes:
        name: Its name.
        time_s: The moment, as Unix time.
        state: ``running``, ``starting``, ``not started yet``, or the verdict of its last start.
        reason: Why it ended.
        host: Machine of the owner; empty without one.
        job: Its job on a cluster; None where it was started by hand.
        training: Where it stands; None before the first step.
        goodput: Productive share of the wall time; None before the first step.
        is_goodput_exact: Whether it was computed from all steps, and not from a sample.
        wall_s: Wall time, in seconds, down time included.
        checkpoint: The last one, and the next one.
        time_left_s: Until the last step, at the measured speed; None where the run does not go on.
        attempts: The last ones.
        attempt_count: How many there were.
        warnings: What to look at, the gravest first.
    """

    name: str
    time_s: float
    state: str
    reason: str
    host: str
    job: JobStatus | None
    training: Training | None
    goodput: float | None
    is_goodput_exact: bool
    wall_s: float
    checkpoint: CheckpointStatus
    time_left_s: float | None
    attempts: tuple[AttemptStatus, ...]
    attempt_count: int
    warnings: tuple[Warned, ...] = ()


def tell_status(observed: Observed) -> Status:
    """Tells how a run stands, but for the warnings.

    Args:
        observed: What is known of it.

    Returns:
        Its status.
    """
    summary = summarize(observed.records)
    attempts = summary.account.attempts
    training = _training(observed)
    state, reason = _state(observed, summary)
    remaining = None
    if state == RUNNING and training is not None and training.max_steps is not None and training.between_s is not None:
        remaining = max(0, training.max_steps - training.step) * training.between_s
    return Status(
        name=observed.name,
        time_s=observed.now_s,
        state=state,
        reason=reason,
        host=observed.lease.host if observed.lease else "",
        job=_job(observed),
        training=training,
        goodput=summary.account.goodput if training else None,
        is_goodput_exact=observed.is_exact,
        wall_s=summary.account.wall_us / 1e6,
        checkpoint=_checkpoint(observed, training, goes_on=state in (RUNNING, STARTING)),
        time_left_s=remaining,
        attempts=tuple(
            AttemptStatus(one.number, one.from_step, one.verdict or "none", " ".join(one.reason.split()))
            for one in attempts[-_SHOWN_ATTEMPTS:]
        ),
        attempt_count=len(attempts),
    )


def events_of(observed: Observed, kind: str) -> list[Record]:
    """The run's events of a kind, oldest first."""
    return [event for event in observed.records.events if event.get("event") == kind]


def shared_saves(observed: Observed) -> list[Record]:
    """The saves to the run directory, oldest first; those to a node's own disk may be gone with the node."""
    return [event for event in events_of(observed, "save") if event.get("tier", "shared") == "shared"]


def _state(observed: Observed, summary: Summary) -> tuple[str, str]:
    attempts = summary.account.attempts
    if observed.records.is_running:
        return (RUNNING if attempts and attempts[-1].steps else STARTING), ""
    last_s = attempts[-1].end_us / 1e6 if attempts else 0.0
    unclaimed = [one for one in observed.records.unclaimed if (number(one.get("time_s")) or 0.0) > last_s]
    if unclaimed and summary.verdict != COMPLETE:
        return last_failed_start(unclaimed)
    if not attempts:
        return NO_START, ""
    return summary.verdict or DIED, attempts[-1].reason


def _training(observed: Observed) -> Training | None:
    lines = [line for line in observed.tail if names.TRAIN_LOSS in line]
    if not lines:
        return None
    last = lines[-1]
    own = [line for line in lines if line["attempt"] == last["attempt"]]
    gaps = _gaps_s(own)
    losses = [loss for line in own[-_MEAN_STEPS:] if (loss := number(line.get(names.TRAIN_LOSS))) is not None]
    durations = [taken for line in own[1:] if (taken := number(line.get(names.PERF_STEP_TIME_S))) is not None]
    evaluation = observed.evaluation or {}
    return Training(
        step=last["step"],
        max_steps=whole(observed.setting("train.max_steps")),
        tokens=_tokens(last, observed),
        loss=number(last.get(names.TRAIN_LOSS)),
        mean_loss=fmean(losses) if losses else None,
        lr=number(last.get(names.OPTIM_LR)),
        tokens_per_s=number(last.get(names.PERF_TOKENS_PER_S)),
        mfu=number(last.get(names.PERF_MFU)),
        step_s=median(durations) if durations else number(last.get(names.PERF_STEP_TIME_S)),
        between_s=fmean(gaps) if gaps else number(last.get(names.PERF_STEP_TIME_S)),
        longest_gap_s=max(gaps, default=0.0),
        age_s=max(0.0, observed.now_s - (number(last.get("time_s")) or observed.now_s)),
        validation_loss=number(evaluation.get(names.EVAL_LOSS)),
        validation_step=whole(evaluation.get("step")),
    )


def _gaps_s(lines: Sequence[Record]) -> list[float]:
    times = [time_s for line in lines if (time_s := number(line.get("time_s"))) is not None]
    return [max(0.0, later - earlier) for earlier, later in pairwise(times)]


def _tokens(line: Record, observed: Observed) -> int | None:
    sequences = number(line.get(names.DATA_SEQUENCES))
    max_seq_len = whole(observed.setting("train.max_seq_len"))
    return None if sequences is None or max_seq_len is None else round(sequences * max_seq_len)


def _checkpoint(observed: Observed, training: Training | None, goes_on: bool) -> CheckpointStatus:
    saves = shared_saves(observed)
    last: Record = saves[-1] if saves else {}
    every = whole(observed.setting("checkpoint.every_steps"))
    next_step = next_in_s = None
    goes_on = goes_on and whole(observed.setting("checkpoint.keep_last")) != 0
    if goes_on and training is not None and training.max_steps is not None and every is not None:
        after = (training.step // every + 1) * every if every else training.max_steps
        next_step = min(after, training.max_steps)
        if training.between_s is not None:
            next_in_s = max(0.0, (next_step - training.step) * training.between_s - training.age_s)
    saved_s = number(last.get("time_s"))
    return CheckpointStatus(
        saved_step(last) if last else None,
        None if saved_s is None else max(0.0, observed.now_s - saved_s),
        whole(last.get("bytes")),
        next_step,
        next_in_s,
    )


def _job(observed: Observed) -> JobStatus | None:
    job_id = observed.job_id
    if job_id is None:
        return None
    own = [line for line in observed.jobs if str(line.get("job_id")) == job_id]
    starts = [line for line in own if line.get("event") == "job_start"]
    start: Record = starts[-1] if starts else {}
    # What was launched before the job was requeued ran on nodes that may be others' by now.
    since = own[own.index(start) :] if starts else own
    launches = [line for line in since if line.get("event") == "launch"]
    launch: Record = launches[-1] if launches else {}
    told = [line for line in since if line.get("event") in ("launch", "decision")]
    decided: Record = told[-1] if told and told[-1].get("event") == "decision" else {}
    queued = observed.queued
    end_s = number(start.get("end_s"))
    if queued is not None and queued.state == "RUNNING":
        end_s = None if queued.time_left_s is None else observed.now_s + queued.time_left_s
    waits = queued is not None and queued.state == "PENDING"  # and has no nodes yet
    excluded = next((line.get("excluded") for line in reversed(own) if line.get("event") == "decision"), ())
    return JobStatus(
        job_id,
        str(start.get("job_name") or ""),
        queued.state if queued else "",
        queued.reason if queued else "",
        () if waits else _names(launch.get("nodes")) or _names(start.get("nodes")),
        () if waits else _names(launch.get("spares")),
        _names(excluded),
        whole(start.get("restart")),
        whole(launch.get("launch")),
        queued.start_s if queued and queued.state == "PENDING" else None,
        end_s,
        _decision(decided),
    )


def _decision(line: Record) -> str:
    if not line:
        return ""
    delay_s = number(line.get("delay_s")) or 0.0
    after = f" in {math.ceil(delay_s)} s" if delay_s else ""
    return f"{line.get('action', '?')}{after}: {' '.join(str(line.get('reason', '')).split())}"


def _names(value: object) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list | tuple) else ()
