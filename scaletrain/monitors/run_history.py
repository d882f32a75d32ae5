"""The attempts of a run, read off its records: when each ran, what it trained, how it ended, which steps were lost."""

import re
from bisect import insort
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from scaletrain.launch.verdicts import Verdict
from scaletrain.monitors import names
from scaletrain.monitors.run_records import Record, RunRecords, number

_SAVED_STEP = re.compile(r"step_(\d+)")
_MOST_S = 1e11
_SAME_FAILURE_S = 5.0  # in which a rank that died without a word is the cause, and the others' errors its echo


@dataclass(frozen=True)
class Step:
    """A step that an attempt trained.

    Attributes:
        attempt: Number of the attempt.
        step: Number of the step.
        time_s: Unix time of its end.
        loss: Its loss; None where it is no finite number.
        lost: Whether it was done again later, or never saved.
    """

    attempt: int
    step: int
    time_s: float
    loss: float | None
    lost: bool = False


@dataclass(frozen=True)
class Attempt:
    """One start of the run.

    Attributes:
        number: Its number, from 1.
        begin_us: When its process started, in microseconds since 1970.
        end_us: Its last sign.
        from_step: The step that it went on from; None where it did not come so far.
        world_size: Number of ranks, where it is known.
        zero_stage: DeepSpeed's stage, where it is known.
        steps: The steps that it trained, in order.
        verdict: How it ended; "running", or "" where nobody told.
        reason: Why, in words for people.
    """

    number: int
    begin_us: int
    end_us: int
    from_step: int | None
    world_size: int | None
    zero_stage: int | None
    steps: tuple[Step, ...]
    verdict: str
    reason: str


@dataclass(frozen=True)
class OwnRecords:
    """The records of one attempt; of the metrics, the lines of its steps."""

    number: int
    events: list[Record]
    lines: list[Record]
    verdicts: list[Record]
    claim_s: float | None

    @cached_property
    def times_s(self) -> list[float]:
        found = [number(record.get("time_s")) for record in (*self.events, *self.lines, *self.verdicts)]
        return [value for value in (*found, self.claim_s) if value is not None]

    @property
    def start(self) -> Record:
        return next((event for event in self.events if event.get("event") in ("start", "resume")), {})


def attempts_of(records: RunRecords) -> tuple[list[OwnRecords], list[Attempt]]:
    """Reads the attempts off a run's records.

    Args:
        records: What the run left.

    Returns:
        Of each attempt that any record has a time for, its records, and what they tell.
    """
    owned = [own for own in _by_attempt(records) if own.times_s]
    return owned, _mark_lost(_attempts(owned, records), records)


def saved_step(event: Record) -> int | None:
    """The step that a ``save`` event is about, which for a save in the background is not the step that it ends at."""
    match = _SAVED_STEP.search(str(event.get("folder", "")))
    return int(match.group(1)) if match else whole(event.get("step"))


def stall_s(event: Record) -> float:
    """How long training stood still for a save: all the time it took, where the event does not tell them apart."""
    return max(0.0, number(event.get("stall_s", event.get("seconds"))) or 0.0)


def whole(value: object) -> int | None:
    """A value as a whole number; None where it is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def microseconds(value: object) -> int:
    """Seconds as whole microseconds; 0 for what is negative or no number, and no more than a calendar can show."""
    return round(min(max(0.0, number(value) or 0.0), _MOST_S) * 1e6)


def _is_step(line: Record) -> bool:
    return names.PERF_STEP_TIME_S in line or names.TRAIN_LOSS in line


def _by_attempt(records: RunRecords) -> list[OwnRecords]:
    told = {whole(record.get("attempt")) for record in (*records.events, *records.lines)}
    numbers = sorted({*(found for found in told if found is not None), *records.claims, *records.verdicts})
    events: dict[int | None, list[Record]] = defaultdict(list)
    lines: dict[int | None, list[Record]] = defaultdict(list)
    for kept, written in ((events, records.events), (lines, records.lines)):
        for record in written:
            kept[whole(record.get("attempt"))].append(record)
    return [
        OwnRecords(
            found,
            sorted(events[found], key=lambda event: number(event.get("time_s")) or 0.0),
            [line for line in lines[found] if _is_step(line)],
            list(records.verdicts.get(found, [])),
            records.claims.get(found),
        )
        for found in numbers
    ]


def _attempts(owned: Sequence[OwnRecords], records: RunRecords) -> list[Attempt]:
    """The attempts one after the other: each ends before the next one claims the run, whatever its late records say."""
    attempts: list[Attempt] = []
    for index, own in enumerate(owned):
        is_last = index + 1 == len(owned)
        began = [*own.times_s, number(own.start.get("launched_s")) or own.times_s[0]]
        begin_us, end_us = microseconds(min(began)), microseconds(max(own.times_s))
        if is_last:
            end_us = max(end_us, microseconds(records.last_sign_s))
        else:
            end_us = min(end_us, microseconds(min(owned[index + 1].times_s)))
        if attempts:
            begin_us = max(begin_us, attempts[-1].end_us)
        verdict, reason = _verdict(own)
        if is_last and records.is_running:
            verdict, reason = "running", ""
        steps = tuple(_step(own.number, line) for line in own.lines)
        from_step = whole(own.start.get("step"))
        if from_step is None and steps:
            from_step = steps[0].step - 1
        world_size, stage = whole(own.start.get("world_size")), whole(own.start.get("zero_stage"))
        end_us = max(begin_us, end_us)
        attempts.append(Attempt(own.number, begin_us, end_us, from_step, world_size, stage, steps, verdict, reason))
    return attempts


def _step(attempt: int, line: Record) -> Step:
    return Step(attempt, line["step"], number(line.get("time_s")) or 0.0, number(line.get(names.TRAIN_LOSS)))


def _verdict(own: OwnRecords) -> tuple[str, str]:
    """How an attempt ended and why: what its ranks say differs, since the end of one is an error for the others."""
    told = own.verdicts or [event for event in own.events if event.get("event") == "exit"]
    told = [record for record in told if record.get("verdict") != "complete"] or told
    if not told:
        return "", "no verdict: the machine went away, the keeper with its rank, or the disk was full"
    return _cause(told)


def last_failed_start(unclaimed: Sequence[Record]) -> tuple[str, str]:
    """How the last start ended that never had a number, and why.

    Args:
        unclaimed: What the ranks of such starts say, one or more.

    Returns:
        The verdict, and the reason in words for people.
    """
    last_s = max(_told_s(record) for record in unclaimed)
    return _cause([record for record in unclaimed if _told_s(record) >= last_s - _SAME_FAILURE_S])


def _cause(told: Iterable[Record]) -> tuple[str, str]:
    told = sorted(told, key=_told_s)
    silent = [
        record
        for record in told
        if record.get("written_by") == "keeper" and _told_s(record) <= _told_s(told[0]) + _SAME_FAILURE_S
    ]
    cause = (silent or told)[0]
    rank = whole(cause.get("rank"))
    # A hang's reason names the rank that the others waited for, and is the same of all of them.
    is_named = cause.get("verdict") not in (Verdict.COMPLETE, Verdict.STOPPED, Verdict.HANG)
    prefix = f"rank {rank}: " if rank is not None and is_named else ""
    return str(cause.get("verdict")), prefix + str(cause.get("reason", ""))


def _told_s(record: Record) -> float:
    return number(record.get("time_s")) or 0.0


def _mark_lost(attempts: list[Attempt], records: RunRecords) -> list[Attempt]:
    """Marks the steps that were done again, after a restart or a rollback, or that the run ended without saving."""
    kept: list[tuple[int, int]] = []  # number of the step, its place among all
    saved = [0]
    lost: set[int] = set()
    place = 0

    def back_to(step: int) -> None:
        while kept and kept[-1][0] > step:
            lost.add(kept.pop()[1])
        while saved[-1] > max(step, 0):
            saved.pop()

    for attempt in attempts:
        if attempt.from_step is not None:
            back_to(attempt.from_step)
            insort(saved, attempt.from_step)
        for what, step in _history(attempt, records.events):
            if what == "save":
                insort(saved, step)
                continue
            back_to(step if what == "rollback" else step - 1)
            if what == "step":
                kept.append((step, place))
                place += 1
    # A complete run has saved its end, or was asked to save nothing: then nobody needs the weights.
    if attempts and attempts[-1].verdict not in ("running", Verdict.COMPLETE):
        back_to(saved[-1])
    numbered = iter(range(place))
    return [
        replace(attempt, steps=tuple(replace(step, lost=next(numbered) in lost) for step in attempt.steps))
        for attempt in attempts
    ]


def _history(attempt: Attempt, events: Iterable[Record]) -> list[tuple[str, int]]:
    """Steps, saves and rollbacks of an attempt in the order of time, steps before what follows them at once."""
    timed = [(step.time_s, "step", step.step) for step in attempt.steps]
    for event in events:
        step = saved_step(event) if event.get("event") == "save" else whole(event.get("to_step"))
        if event.get("attempt") == attempt.number and event.get("event") in ("save", "rollback") and step is not None:
            timed.append((number(event.get("time_s")) or 0.0, str(event["event"]), step))
    return [(what, step) for _, what, step in sorted(timed, key=lambda item: item[0])]
