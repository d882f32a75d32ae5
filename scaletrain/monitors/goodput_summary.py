"""What a run's account says in figures: interruptions, saves, faults, and the checkpoint interval to choose."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from scaletrain.monitors.goodput import Account, Segment, Spent, account
from scaletrain.monitors.interval_advice import Advice, advise
from scaletrain.monitors.run_history import Attempt, last_failed_start, stall_s, whole
from scaletrain.monitors.run_records import Record, RunRecords, number

COMPLETE, RUNNING = "complete", "running"
_ASKED_FOR = ("requeue", "stopped")


@dataclass(frozen=True)
class Saves:
    """The saves to one tier of storage.

    Attributes:
        tier: Its name.
        count: Saves that were completed.
        stall_s: How long training stood still for one, on average.
        seconds: How long one took until it was complete, on average.
        mean_bytes: Size of one on average; None where it was not recorded.
    """

    tier: str
    count: int
    stall_s: float
    seconds: float
    mean_bytes: float | None


@dataclass(frozen=True)
class Summary:
    """What a run's account says.

    Attributes:
        account: The account.
        interruptions: How many attempts trained and ended before the run was complete.
        failures: Those of them that nobody had asked for.
        failed_starts: Attempts that ended before their first step.
        unnumbered_starts: Starts that ended before they were an attempt.
        last_unnumbered: Verdict and reason of the last one; empty where there is none.
        up_s: Time in which a process of the run was up.
        saves: By tier.
        failed_saves: Reasons of the saves that failed, with how often each occurred.
        rollbacks: Their events.
        transient_faults: How many, by the place that they were seen at.
        skipped_steps: Steps whose gradient was not finite, and was not applied.
        recovery_s: Mean time from a failure to the next step; None where that never happened.
        advice: The checkpoint interval.
    """

    account: Account
    interruptions: int
    failures: int
    failed_starts: int
    unnumbered_starts: int
    last_unnumbered: tuple[str, str]
    up_s: float
    saves: tuple[Saves, ...]
    failed_saves: tuple[tuple[str, int], ...]
    rollbacks: tuple[Record, ...]
    transient_faults: tuple[tuple[str, int], ...]
    skipped_steps: int
    recovery_s: float | None
    advice: Advice

    @property
    def verdict(self) -> str:
        """How the run stands: the verdict of its last attempt."""
        return self.account.attempts[-1].verdict if self.account.attempts else ""

    @property
    def lost_steps(self) -> int:
        """Steps trained in vain."""
        return sum(step.lost for step in self.account.steps)

    @property
    def between_interruptions_s(self) -> float | None:
        """Mean time between interruptions; None without one."""
        return self.up_s / self.interruptions if self.interruptions else None

    @property
    def lost_per_interruption(self) -> float | None:
        """Steps lost in an interruption or a rollback, on average; None without one."""
        occasions = self.interruptions + len(self.rollbacks)
        return self.lost_steps / occasions if occasions else None


def summarize(records: RunRecords) -> Summary:
    """Sums a run up.

    Args:
        records: What the run left.

    Returns:
        Its figures.
    """
    told = account(records)
    ended = [attempt for attempt in told.attempts if attempt.verdict not in (COMPLETE, RUNNING)]
    interrupted = [attempt for attempt in ended if attempt.steps]
    failed = [attempt for attempt in interrupted if attempt.verdict not in _ASKED_FOR]
    up_s = sum(attempt.end_us - attempt.begin_us for attempt in told.attempts) / 1e6
    rollbacks = tuple(_events(records, "rollback"))
    recovery_s = _recovery_s(told.attempts, told.segments, failed)
    failures = len(failed) + len(rollbacks)
    return Summary(
        told,
        len(interrupted),
        len(failed),
        len(ended) - len(interrupted),
        max(Counter(whole(record.get("rank")) for record in records.unclaimed).values(), default=0),  # a file a rank
        last_failed_start(records.unclaimed) if records.unclaimed else ("", ""),
        up_s,
        _saves(_events(records, "save")),
        tuple(Counter(str(event.get("reason", "")) for event in _events(records, "save_failed")).most_common()),
        rollbacks,
        tuple(Counter(map(_place, _events(records, "transient_fault"))).most_common()),
        len(_events(records, "skipped_step")),
        recovery_s,
        advise(told.attempts, records.events, _step_s(told), up_s, failures, recovery_s),
    )


def _events(records: RunRecords, kind: str) -> list[Record]:
    return [event for event in records.events if event.get("event") == kind]


def _place(event: Record) -> str:
    return f"{event.get('host', 'unknown host')}, local rank {event.get('local_rank', '?')}"


def _step_s(told: Account) -> float | None:
    shares = told.shares_us
    steps = len(told.steps)
    if not steps:
        return None
    return (shares[Spent.PRODUCTIVE] + shares[Spent.LOST] + shares[Spent.DATA_WAIT]) / steps / 1e6


def _saves(events: Sequence[Record]) -> tuple[Saves, ...]:
    by_tier: dict[str, list[Record]] = defaultdict(list)
    for event in events:
        by_tier[str(event.get("tier", "shared"))].append(event)
    found = []
    for tier, own in sorted(by_tier.items()):
        sizes = [size for event in own if (size := whole(event.get("bytes"))) is not None]
        seconds = fmean(max(0.0, number(event.get("seconds")) or 0.0) for event in own)
        found.append(Saves(tier, len(own), fmean(map(stall_s, own)), seconds, fmean(sizes) if sizes else None))
    return tuple(found)


def _recovery_s(attempts: Sequence[Attempt], segments: Sequence[Segment], failed: Sequence[Attempt]) -> float | None:
    """Mean time from a failure to the first step after it; failed starts in between count in."""
    starts = [segment.end_us for segment in segments if segment.spent is Spent.START_UP]
    taken = []
    for attempt in failed:
        after = next((later for later in attempts if later.number > attempt.number and later.steps), None)
        if after is not None:
            ready = [end_us for end_us in starts if after.begin_us <= end_us <= after.end_us]
            taken.append(((ready[0] if ready else after.begin_us) - attempt.end_us) / 1e6)
    return fmean(taken) if taken else None
