"""Which checkpoint interval a run's own figures ask for, beside the one it has."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median_high

from scaletrain.monitors.run_history import Attempt, saved_step, stall_s
from scaletrain.monitors.run_records import Record, number
from scaletrain.planning.checkpoint_interval import cost_share, daly_s, failure_bound_s, with_recovery_s, young_s


@dataclass(frozen=True)
class Interval:
    """A checkpoint interval.

    Attributes:
        name: What it is called.
        source: The formula, and where it stands.
        seconds: Training time between saves.
        steps: The same in steps, at least 1.
        cost: Share of time that goes into saving, recovering and training again what was lost, 0 to 1.
    """

    name: str
    source: str
    seconds: float
    steps: int
    cost: float


@dataclass(frozen=True)
class Advice:
    """What to make of the measured figures.

    Attributes:
        problem: Why nothing can be said; empty where something can.
        stall_s: How long training stands still for a save, on average.
        save_s: How long a save takes until it is complete, on average: no interval should be shorter.
        failures: Failures that the mean time between them comes from, rollbacks included.
        rollbacks: Those of them that were rollbacks.
        failure_s: Mean time between failures; without any, what it is at least, with 95 % confidence.
        recovery_s: Mean time from a failure until training goes on; None where none was measured.
        present: The interval that the run has.
        recommended: What the formulas say; without a failure, what an interval should be at least.
    """

    problem: str
    stall_s: float = 0.0
    save_s: float = 0.0
    failures: int = 0
    rollbacks: int = 0
    failure_s: float = 0.0
    recovery_s: float | None = None
    present: Interval | None = None
    recommended: tuple[Interval, ...] = ()

    @property
    def is_bound(self) -> bool:
        """Whether there was no failure yet, so that only bounds are known."""
        return self.failures == 0

    @property
    def uncertainty(self) -> float:
        """Standard error of the recommended intervals, relative, as few failures leave it: 1 / (2 sqrt(failures))."""
        return 0.5 / self.failures**0.5 if self.failures else float("inf")


def advise(
    attempts: Sequence[Attempt],
    events: Sequence[Record],
    step_s: float | None,
    up_s: float,
    failures: int,
    recovery_s: float | None,
) -> Advice:
    """Recommends a checkpoint interval.

    Args:
        attempts: The run's attempts.
        events: The run's events.
        step_s: What a step takes on average, its wait for data included; None before there was one.
        up_s: Time in which the run was up.
        failures: How many failures it had in that time, rollbacks included.
        recovery_s: Mean time from a failure until training went on; None where that never happened.

    Returns:
        The advice.
    """
    stalls: dict[tuple[object, int | None], float] = defaultdict(float)  # one entry for the tiers of one save
    durations = []
    for event in events:
        if event.get("event") == "save":
            stalls[event.get("attempt"), saved_step(event)] += stall_s(event)
            durations.append(max(0.0, number(event.get("seconds")) or 0.0))
    if not step_s or up_s <= 0:
        return Advice("no step was trained yet: there is nothing to go by")
    if not stalls:
        return Advice("no checkpoint was saved yet: what a save costs is not known")
    stalled_s = fmean(stalls.values())
    if stalled_s <= 0:
        return Advice("training never stood still for a save: save as often as one can be completed")
    failure_s = up_s / failures if failures else failure_bound_s(up_s)
    recovers_s = recovery_s or 0.0

    def interval(name: str, source: str, seconds: float) -> Interval:
        steps = max(1, round(seconds / step_s))
        return Interval(name, source, seconds, steps, cost_share(seconds, stalled_s, failure_s, recovers_s))

    now = _present_steps(attempts, stalls)
    recommended = (
        interval("Young", "sqrt(2 δ M), 1974", young_s(stalled_s, failure_s)),
        interval("Daly", "higher order, 2006", daly_s(stalled_s, failure_s)),
        interval("with recovery", "arXiv 2410.18124", with_recovery_s(stalled_s, failure_s, recovers_s)),
    )
    present = None if now is None else interval("now", "", now * step_s)
    rollbacks = sum(event.get("event") == "rollback" for event in events)
    return Advice(
        "",
        stall_s=stalled_s,
        save_s=fmean(durations),
        failures=failures,
        rollbacks=rollbacks,
        failure_s=failure_s,
        recovery_s=recovery_s,
        present=present,
        recommended=recommended,
    )


def _present_steps(attempts: Sequence[Attempt], saves: dict[tuple[object, int | None], float]) -> int | None:
    """Steps between saves, as most often in the last attempt that saved: an interval may be changed at a restart."""
    for attempt in reversed(attempts):
        own = sorted({step for number, step in saves if number == attempt.number and step is not None})
        places = ([] if attempt.from_step is None else [attempt.from_step]) + own
        distances = [later - earlier for earlier, later in pairwise(places) if later > earlier]
        if distances:
            return median_high(distances)
    return None
