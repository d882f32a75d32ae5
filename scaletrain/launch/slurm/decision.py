"""What a supervisor does next: a pure function from what is known to an action."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from scaletrain.launch.verdicts import EXIT_CODES, Verdict

LONGEST_BACKOFF_S = 3600.0
_IN_PLACE = 1
"""Crashes of unknown cause and without progress in one allocation after which other nodes are tried."""


class Asked(StrEnum):
    """Who wants the job to end, where it does not end by itself."""

    NOBODY = "nobody"
    TIME_LIMIT = "time limit"
    PREEMPTED = "preempted"
    REQUEUED = "ended or requeued by Slurm"
    """It is being ended, to start again or not, and nobody asks here: scontrol requeue, scancel, a preemption without a
    time of grace."""
    CANCELLED = "cancelled"
    REPLACED = "replaced"
    """The job runs elsewhere by now: this is what is left on a node that Slurm had given up."""


class Kind(StrEnum):
    """The kinds of actions."""

    LAUNCH = "launch"
    REQUEUE = "requeue"
    STOP = "stop"
    LEAVE = "leave"


@dataclass(frozen=True)
class Action:
    """What to do.

    Attributes:
        kind: ``launch``: training starts again in this allocation. ``requeue``: the job is given back and starts anew.
            ``stop``: it ends with a code. ``leave``: Slurm has decided already.
        reason: Why, for people.
        code: Exit code of the job.
        delay_s: Seconds until a requeued job may start.
    """

    kind: Kind
    reason: str
    code: int = 0
    delay_s: float = 0.0


@dataclass(frozen=True)
class Situation:
    """All that a decision depends on.

    Attributes:
        verdict: How the launch ended, over all its ranks; None where nothing was launched.
        reason: Of that verdict, for people.
        asked: Who wanted the job to end.
        sick: Nodes that must not be used, with the reason.
        healthy: Nodes of the allocation that may be.
        needed: Nodes that the training takes.
        excluded: Nodes that the job has left out lately for reasons of its own, in any start, with the reason.
        most_excluded: How many of them there may be; see ``most_excluded``.
        progressed: Whether the launch has saved a later step than any before.
        without_progress: Launches in a row, this one among them, that did not.
        crashes_here: Launches in this allocation that crashed without progress, this one among them.
        fruitless_starts: Starts of the job in a row, this one among them, in which nothing could be launched.
        crash_limit: Launches in a row without progress after which the job gives up.
        backoff_s: First delay of a requeue whose cause is unknown, in seconds.
    """

    verdict: Verdict | None
    reason: str
    asked: Asked = Asked.NOBODY
    sick: Mapping[str, str] = field(default_factory=dict)
    healthy: int = 0
    needed: int = 1
    excluded: Mapping[str, str] = field(default_factory=dict)
    most_excluded: int = 1
    progressed: bool = False
    without_progress: int = 0
    crashes_here: int = 0
    fruitless_starts: int = 0
    crash_limit: int = 3
    backoff_s: float = 60.0


_ENDS_BY_ITSELF = (Verdict.COMPLETE, Verdict.USER_ERROR, Verdict.GAVE_UP, Verdict.STOPPED)


def decide(now: Situation) -> Action:
    """Decides what follows the end of a launch, or checks after which nothing can be launched.

    Args:
        now: What is known.

    Returns:
        The action. The rows stand in this order in docs/cluster.md.
    """
    if now.asked in (Asked.CANCELLED, Asked.REQUEUED, Asked.REPLACED):
        code = EXIT_CODES[Verdict.REQUEUE if now.asked is not Asked.CANCELLED else Verdict.STOPPED]
        return Action(Kind.LEAVE, f"the job was {now.asked}", code)
    if now.verdict in _ENDS_BY_ITSELF:
        return Action(Kind.STOP, f"{now.verdict}: {now.reason}", EXIT_CODES[now.verdict])
    if now.asked is Asked.PREEMPTED:
        return Action(Kind.REQUEUE, f"{now.asked}: {_told(now)}")
    if len(now.excluded) > now.most_excluded:
        told = "; ".join(f"{node}: {why}" for node, why in sorted(now.excluded.items()))
        return Action(
            Kind.STOP,
            f"too many nodes to leave out: {len(now.excluded)}, and a job leaves out {now.most_excluded} by itself "
            f"(MAX_EXCLUDED_SHARE), as what they share may be broken: {told}",
            EXIT_CODES[Verdict.GAVE_UP],
        )
    if now.verdict is None:
        return _without_launch(now)
    if now.without_progress >= now.crash_limit:
        return Action(
            Kind.STOP,
            f"crash loop: {now.without_progress} launches in a row have saved no new step; the last one: {_told(now)}",
            EXIT_CODES[Verdict.GAVE_UP],
        )
    if now.asked is not Asked.NOBODY:
        # Also where the save failed: the run goes on from the checkpoint before.
        return Action(Kind.REQUEUE, f"{now.asked}: {_told(now)}")
    if now.verdict is Verdict.REQUEUE:
        return Action(Kind.REQUEUE, _told(now))
    if now.healthy < now.needed:
        return Action(Kind.REQUEUE, f"{_told(now)}; {_too_few(now)}", delay_s=0.0 if now.sick else _backoff_s(now))
    if now.sick:
        return Action(Kind.LAUNCH, f"{_told(now)}; goes on without {', '.join(sorted(now.sick))}")
    if now.progressed or now.crashes_here <= _IN_PLACE:
        return Action(Kind.LAUNCH, f"{_told(now)}; once more on the same nodes, which are checked first")
    return Action(Kind.REQUEUE, f"{_told(now)}; other nodes may do better", delay_s=_backoff_s(now))


def most_excluded(nodes: int, share: float) -> int:
    """How many nodes a job may leave out by itself: a fault of many at once is seldom theirs.

    Args:
        nodes: Those that it could get.
        share: How much of them it may leave out.

    Returns:
        At least one, which a small cluster has to do without as well, but never all of them.
    """
    return min(max(1, int(nodes * share)), nodes - 1)


def _without_launch(now: Situation) -> Action:
    if now.fruitless_starts >= now.crash_limit:
        return Action(
            Kind.STOP,
            f"gave up: {now.fruitless_starts} starts in a row launched nothing; the last one: {_unlaunched(now)}",
            EXIT_CODES[Verdict.GAVE_UP],
        )
    if now.asked is not Asked.NOBODY:
        return Action(Kind.REQUEUE, f"{now.asked}, before anything was launched")
    delay_s = 0.0 if now.sick else _backoff_s(now)
    return Action(Kind.REQUEUE, _unlaunched(now), delay_s=delay_s)


def _unlaunched(now: Situation) -> str:
    return now.reason if now.healthy >= now.needed else f"{now.reason}; {_too_few(now)}"


def _too_few(now: Situation) -> str:
    return f"{now.healthy} usable nodes are left of the {now.needed} needed"


def _told(now: Situation) -> str:
    return f"{now.verdict}: {now.reason}" if now.verdict else now.reason


def _backoff_s(now: Situation) -> float:
    doublings = max(0, max(now.without_progress, now.fruitless_starts) - 1)
    return float(min(LONGEST_BACKOFF_S, now.backoff_s * 2 ** min(doublings, 20)))
