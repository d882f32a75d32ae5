"""What somebody who watches a run should look at."""

from collections.abc import Iterator
from dataclasses import replace

from scaletrain.launch.heartbeat import REFRESH_S
from scaletrain.launch.slurm.journal import count_without_progress
from scaletrain.monitors.goodput_summary import COMPLETE, RUNNING
from scaletrain.monitors.goodput_text import short_duration
from scaletrain.monitors.progress import format_duration
from scaletrain.monitors.run_history import saved_step, whole
from scaletrain.monitors.run_records import number
from scaletrain.monitors.status import (
    DIED,
    NO_START,
    STARTING,
    Status,
    Warned,
    events_of,
    shared_saves,
    tell_status,
)
from scaletrain.monitors.status_records import Observed

_LATE = 5.0  # times the median step
_LEAST_LATE_S = 10.0
_OLD_HEARTBEAT_S = 6 * REFRESH_S
_LONG_START_S = 1800.0  # after as long a rank gives up waiting for another one, as it comes
_OLD_INTERVALS = 2
_WANTED = (RUNNING, STARTING, NO_START, COMPLETE, "requeue", "stopped")

_WORTH_A_LOOK = ("warn", "drain", "abort")  # of hardware.rules.SEVERITIES, whose imports take as long as all else here

_COUNTED = (
    ("skipped_step", "step", "skipped, as loss or gradient was not finite"),
    ("loss_spike", "loss spike", "without a checkpoint to go back to"),
    ("rollback", "rollback", ""),
    ("transient_fault", "transient fault", "of a device that computed wrong numbers"),
    ("straggler", "straggler", "named"),
    ("ranks_differ", "difference", "between ranks"),
    ("skip_shard", "damaged shard", "left out"),
    ("refused_checkpoint", "damaged checkpoint", "not loaded"),
)


def status_of(observed: Observed) -> Status:
    """Tells how a run stands, with what to look at.

    Args:
        observed: What is known of it.

    Returns:
        Its status.
    """
    status = tell_status(observed)
    found = [
        *_bad_end(status),
        *_silence(observed, status),
        *_failed_saves(observed, status),
        *_old_checkpoint(observed, status),
        *_full_disk(observed, status),
        *_crash_loop(observed, status),
        *_findings(observed, status),
        *_counted(observed),
    ]
    return replace(status, warnings=tuple(sorted(found, key=lambda warning: not warning.is_grave)))


def _bad_end(status: Status) -> Iterator[Warned]:
    if status.state in _WANTED:
        return
    reason = " ".join(status.reason.split())
    if status.state == DIED:
        yield Warned(f"the last start {DIED}: {reason}", True)
    else:
        yield Warned(f"the last start ended with {status.state}: {reason}", True)


def _silence(observed: Observed, status: Status) -> Iterator[Warned]:
    if not observed.records.is_running:
        return
    age_s = observed.heartbeat_age_s
    if age_s is not None and age_s > _OLD_HEARTBEAT_S:
        yield Warned(f"no heartbeat of the owner on {status.host} for {format_duration(age_s)}", True)
    started_s = observed.lease.taken_s if observed.lease else observed.now_s
    if status.state == STARTING and observed.now_s - started_s > _LONG_START_S:
        yield Warned(f"no step yet, {format_duration(observed.now_s - started_s)} after the start", True)
    training = status.training
    if status.state != RUNNING or training is None or training.step_s is None:
        return
    # Evaluations and saves come between steps: a gap as long as one before is no news.
    if training.age_s > max(_LATE * training.step_s, training.longest_gap_s, _LEAST_LATE_S):
        usual = short_duration(training.step_s)
        yield Warned(f"no new step for {format_duration(training.age_s)}, where one takes {usual}", True)


def _failed_saves(observed: Observed, status: Status) -> Iterator[Warned]:
    failed = events_of(observed, "save_failed")
    if failed:
        last = failed[-1]
        saved_s = max((number(save.get("time_s")) or 0.0 for save in events_of(observed, "save")), default=0.0)
        mended = saved_s > (number(last.get("time_s")) or 0.0)
        then = ", saved since" if mended else ""
        yield Warned(
            f"{_count(len(failed), 'failed save')}, the last at step {saved_step(last)}{then}: "
            f"{last.get('reason', '')}",
            not mended and status.state != COMPLETE,
        )


def _old_checkpoint(observed: Observed, status: Status) -> Iterator[Warned]:
    every = whole(observed.setting("checkpoint.every_steps"))
    training = status.training
    if status.state != RUNNING or training is None or not every:
        return
    saved = status.checkpoint.step or 0
    if training.step - saved > _OLD_INTERVALS * every:
        yield Warned(f"{training.step - saved} steps since the last checkpoint; one is due every {every}", True)


def _full_disk(observed: Observed, status: Status) -> Iterator[Warned]:
    size, free = status.checkpoint.size_bytes, observed.free_bytes
    if status.state == COMPLETE or size is None or free is None or free >= size:
        return
    yield Warned(
        f"the next checkpoint takes {size / 2**30:.3g} GiB, and {free / 2**30:.3g} GiB are free in checkpoints/", True
    )


def _crash_loop(observed: Observed, status: Status) -> Iterator[Warned]:
    if status.job is None or status.state == COMPLETE:
        return
    saved = max((saved_step(save) or 0 for save in shared_saves(observed)), default=0)
    told = [line | {"saved_step": whole(line.get("saved_step")) or 0} for line in map(dict, observed.jobs)]
    count = count_without_progress(told, saved) - (status.state in (RUNNING, STARTING))
    if count > 0:
        yield Warned(f"{_count(count, 'launch', 'launches')} in a row ended without a new checkpoint", count > 1)


def _findings(observed: Observed, status: Status) -> Iterator[Warned]:
    if status.state not in (RUNNING, STARTING) or not status.attempts:
        return  # an end for a finding tells it as its reason
    findings = [
        event
        for event in events_of(observed, "health_finding")
        if event.get("attempt") == status.attempts[-1].number and event.get("severity") in _WORTH_A_LOOK
    ]
    if not findings:
        return
    worst = max(reversed(findings), key=lambda event: _WORTH_A_LOOK.index(event["severity"]))
    yield Warned(
        f"{_count(len(findings), 'health finding')}, the worst on {worst.get('host', '?')} "
        f"({worst['severity']}, {worst.get('rule', '?')}): {worst.get('text', '')}",
        worst["severity"] != "warn",
    )


def _counted(observed: Observed) -> Iterator[Warned]:
    for kind, noun, what in _COUNTED:
        events = events_of(observed, kind)
        if not events:
            continue
        last = events[-1]
        step = whole(last.get("step"))
        where = "" if step is None else f", the last at step {step}"
        text = last.get("text")  # names the host itself
        where += f" on {last['host']}" if last.get("host") and not text else ""
        where += ", all over since" if kind == "straggler" and not _slow_ranks(observed) else ""
        reason = f": {told}" if (told := last.get("reason") or text) else ""
        yield Warned(f"{_count(len(events), noun)} {what}".rstrip() + where + reason, False)


def _slow_ranks(observed: Observed) -> set[tuple[object, object]]:
    """Causes and ranks that the latest start has named, and not taken back; a start begins with nobody named."""
    slow = set[tuple[object, object]]()
    for event in observed.records.events:
        ranks = event.get("ranks")
        pairs = {(event.get("cause"), rank) for rank in (ranks if isinstance(ranks, list) else [None])}
        match event.get("event"):
            case "start" | "resume":
                slow.clear()
            case "straggler":
                slow |= pairs
            case "straggler_over":
                slow -= pairs
    return slow


def _count(amount: int, noun: str, plural: str = "") -> str:
    return f"{amount} {noun if amount == 1 else plural or noun + 's'}"
