"""Where the time of a run went, over all its attempts, as pure arithmetic on its records.

Time is counted in whole microseconds, so that the shares add up to the wall time exactly. Each attempt is cut at its
step lines; what is known to have happened between two of them takes its part, in this order: the step, its wait for
data, evaluation, stalls for checkpoints; the rest is ``OTHER``.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from statistics import median

from scaletrain.monitors import names
from scaletrain.monitors.run_history import (
    Attempt,
    OwnRecords,
    Step,
    attempts_of,
    microseconds,
    saved_step,
    stall_s,
)
from scaletrain.monitors.run_records import Record, RunRecords


class Spent(StrEnum):
    """What time went into."""

    PRODUCTIVE = "productive steps"
    LOST = "lost steps"
    CHECKPOINT = "checkpoint stalls"
    START_UP = "start-up"
    DATA_WAIT = "data wait"
    EVALUATION = "evaluation"
    OTHER = "other"
    DOWN = "down time"


@dataclass(frozen=True)
class Segment:
    """A stretch of time, in microseconds since 1970."""

    spent: Spent
    begin_us: int
    end_us: int


@dataclass(frozen=True)
class Account:
    """Where a run's time went.

    Attributes:
        attempts: Its attempts, in order.
        segments: All the time from the first one's begin to the last one's end, without a gap.
    """

    attempts: tuple[Attempt, ...]
    segments: tuple[Segment, ...]

    @property
    def wall_us(self) -> int:
        """Microseconds from the first attempt's begin to the last one's end."""
        return self.segments[-1].end_us - self.segments[0].begin_us if self.segments else 0

    @property
    def shares_us(self) -> dict[Spent, int]:
        """Microseconds that went into each; together they are the wall time."""
        shares = dict.fromkeys(Spent, 0)
        for segment in self.segments:
            shares[segment.spent] += segment.end_us - segment.begin_us
        return shares

    @property
    def goodput(self) -> float:
        """Productive share of the wall time, 0 to 1."""
        return self.shares_us[Spent.PRODUCTIVE] / self.wall_us if self.wall_us else 0.0

    @property
    def steps(self) -> list[Step]:
        """All steps that were trained, in order, the lost ones included."""
        return [step for attempt in self.attempts for step in attempt.steps]


def account(records: RunRecords) -> Account:
    """Tells where a run's time went.

    Starts of a run that was complete already, after it was, are no part of it.

    Args:
        records: What the run left.

    Returns:
        Attempts and segments; both empty where no record has a time.
    """
    owned, attempts = attempts_of(records)
    while len(attempts) > 1 and not attempts[-1].steps and attempts[-2].verdict == attempts[-1].verdict == "complete":
        attempts.pop()
    usual_us = _usual_training_us([own.lines for own in owned])
    segments: list[Segment] = []
    for index, (own, attempt) in enumerate(zip(owned, attempts, strict=False)):
        before_us = attempts[index - 1].end_us if index else attempt.begin_us
        if before_us < attempt.begin_us:
            segments.append(Segment(Spent.DOWN, before_us, attempt.begin_us))
        segments += _cut(own, attempt, usual_us)
    return Account(tuple(attempts), tuple(segments))


def _usual_training_us(attempts: Sequence[Sequence[Record]]) -> int | None:
    """What training takes in a step that is not an attempt's first, which compiles; None where there is none."""
    trained = [_parts_us(line)[0] for lines in attempts for line in lines[1:]]
    return round(median(trained)) if trained else None


def _parts_us(line: Record, most_us: int | None = None) -> tuple[int, int]:
    """Training and wait for data of a step, together at most so much."""
    taken = microseconds(line.get(names.PERF_STEP_TIME_S))
    taken = taken if most_us is None else min(taken, most_us)
    waited = min(taken, microseconds(line.get(names.PERF_DATA_WAIT_S)))
    return taken - waited, waited


def _cut(own: OwnRecords, attempt: Attempt, usual_us: int | None) -> list[Segment]:
    """Cuts an attempt into segments, at its step lines."""
    marks = [attempt.begin_us]
    for line in own.lines:
        marks.append(min(max(marks[-1], microseconds(line.get("time_s"))), attempt.end_us))
    marks.append(attempt.end_us)
    gaps: list[dict[Spent, int]] = []
    for index, length in enumerate(end - begin for begin, end in pairwise(marks)):
        gap = dict.fromkeys(Spent, 0)
        if index < len(own.lines):
            line, step = own.lines[index], attempt.steps[index]
            trained, gap[Spent.DATA_WAIT] = _parts_us(line, length)
            if index == 0 and usual_us is not None:
                trained = min(trained, usual_us)
            gap[Spent.LOST if step.lost else Spent.PRODUCTIVE] = trained
        gap[Spent.OTHER if index else Spent.START_UP] = length - sum(gap.values())
        gaps.append(gap)
    _claim(own, marks, gaps)
    return _in_order(marks[0], gaps)


def _claim(own: OwnRecords, marks: Sequence[int], gaps: Sequence[dict[Spent, int]]) -> None:
    """Gives evaluations and stalls their parts of what no step has taken."""
    for event in own.events:
        if event.get("event") == "evaluated":
            _take(gaps, _gap_of(event, marks), Spent.EVALUATION, microseconds(event.get("seconds")))
    after_step: dict[int, list[int]] = defaultdict(list)
    for index, line in enumerate(own.lines):
        after_step[line["step"]].append(index + 1)
    for event in own.events:
        if event.get("event") in ("save", "save_failed"):
            told = _gap_of(event, marks)
            # A save in the background stops training where it begins, and is told where it ends. A failure is told
            # later than it happened: what finds no room there was before.
            began = [index for index in after_step[saved_step(event) or 0] if index <= told][-1:]
            rest = microseconds(stall_s(event))
            for index in (*began, *range(told, 0, -1)):
                rest -= _take(gaps, index, Spent.CHECKPOINT, rest)
                if not rest:
                    break


def _gap_of(event: Record, marks: Sequence[int]) -> int:
    """Number of the gap between step lines in which an event lies."""
    return max(0, min(bisect_right(marks, microseconds(event.get("time_s"))), len(marks) - 1) - 1)


def _take(gaps: Sequence[dict[Spent, int]], index: int, spent: Spent, wanted: int) -> int:
    taken = min(wanted, gaps[index][Spent.OTHER])
    gaps[index][Spent.OTHER] -= taken
    gaps[index][spent] += taken
    return taken


def _in_order(begin_us: int, gaps: Sequence[Mapping[Spent, int]]) -> list[Segment]:
    order = (
        Spent.START_UP,
        Spent.EVALUATION,
        Spent.CHECKPOINT,
        Spent.OTHER,
        Spent.DATA_WAIT,
        Spent.LOST,
        Spent.PRODUCTIVE,
    )
    segments: list[Segment] = []
    for gap in gaps:
        for spent in order:
            if gap[spent]:
                segments.append(Segment(spent, begin_us, begin_us + gap[spent]))
                begin_us += gap[spent]
    return segments
