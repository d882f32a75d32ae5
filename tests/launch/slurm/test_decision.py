"""The table of decisions: what follows an end, and what must never follow."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaletrain.launch.slurm.decision import LONGEST_BACKOFF_S, Asked, Kind, Situation, decide, most_excluded
from scaletrain.launch.verdicts import Verdict

TWO = Situation(Verdict.CRASH, "why", healthy=2, needed=2)
WITHOUT_N2 = {"sick": {"n2": "ECC"}, "healthy": 1}
SPARE = {"sick": {"n2": "ECC"}, "healthy": 2}
MANY = {"excluded": {"n2": "ECC", "n3": "lost"}}

TABLE = [
    # What happened, what follows, with which exit code.
    (replace(TWO, verdict=Verdict.COMPLETE), Kind.STOP, 0),
    (replace(TWO, verdict=Verdict.COMPLETE, asked=Asked.TIME_LIMIT), Kind.STOP, 0),
    (replace(TWO, verdict=Verdict.USER_ERROR), Kind.STOP, 2),
    (replace(TWO, verdict=Verdict.USER_ERROR, asked=Asked.PREEMPTED), Kind.STOP, 2),
    (replace(TWO, verdict=Verdict.GAVE_UP), Kind.STOP, 78),
    (replace(TWO, verdict=Verdict.STOPPED), Kind.STOP, 130),
    (replace(TWO, verdict=Verdict.REQUEUE), Kind.REQUEUE, 0),
    (replace(TWO, verdict=Verdict.REQUEUE, asked=Asked.TIME_LIMIT), Kind.REQUEUE, 0),
    # A save that failed changes nothing.
    (replace(TWO, verdict=Verdict.CRASH, asked=Asked.TIME_LIMIT), Kind.REQUEUE, 0),
    (replace(TWO, verdict=Verdict.CRASH, asked=Asked.PREEMPTED, without_progress=9), Kind.REQUEUE, 0),
    (replace(TWO, asked=Asked.TIME_LIMIT, without_progress=3), Kind.STOP, 78),
    (replace(TWO, asked=Asked.CANCELLED), Kind.LEAVE, 130),
    (replace(TWO, asked=Asked.REQUEUED), Kind.LEAVE, 75),
    (replace(TWO, verdict=Verdict.COMPLETE, asked=Asked.REPLACED), Kind.LEAVE, 75),
    (replace(TWO, progressed=True), Kind.LAUNCH, 0),
    (replace(TWO, without_progress=1, crashes_here=1), Kind.LAUNCH, 0),
    (replace(TWO, without_progress=2, crashes_here=2), Kind.REQUEUE, 0),
    (replace(TWO, without_progress=3, crashes_here=1), Kind.STOP, 78),
    (replace(TWO, verdict=Verdict.HANG, progressed=True), Kind.LAUNCH, 0),
    (replace(TWO, verdict=Verdict.SICK_NODE, **WITHOUT_N2), Kind.REQUEUE, 0),
    (replace(TWO, verdict=Verdict.SICK_NODE, **SPARE), Kind.LAUNCH, 0),
    (replace(TWO, verdict=None, fruitless_starts=1, **WITHOUT_N2), Kind.REQUEUE, 0),
    (replace(TWO, verdict=None, fruitless_starts=1), Kind.REQUEUE, 0),
    (replace(TWO, verdict=None, fruitless_starts=3), Kind.STOP, 78),
    (replace(TWO, verdict=None, fruitless_starts=1, asked=Asked.TIME_LIMIT), Kind.REQUEUE, 0),
    # As many nodes as a job may leave out by itself, and one more.
    (replace(TWO, verdict=Verdict.SICK_NODE, **SPARE, **MANY, most_excluded=2), Kind.LAUNCH, 0),
    (replace(TWO, verdict=Verdict.SICK_NODE, **SPARE, **MANY), Kind.STOP, 78),
    (replace(TWO, verdict=Verdict.SICK_NODE, asked=Asked.PREEMPTED, **WITHOUT_N2, **MANY), Kind.REQUEUE, 0),
    (replace(TWO, verdict=None, fruitless_starts=1, **MANY), Kind.STOP, 78),
    (replace(TWO, verdict=Verdict.COMPLETE, **MANY), Kind.STOP, 0),
    (replace(TWO, asked=Asked.REQUEUED, **MANY), Kind.LEAVE, 75),
]


@pytest.mark.parametrize(("now", "kind", "code"), TABLE)
def test_the_table(now: Situation, kind: Kind, code: int) -> None:
    action = decide(now)
    assert (action.kind, action.code) == (kind, code), action
    assert action.reason


def test_a_sick_node_costs_no_wait_and_an_unknown_cause_more_each_time() -> None:
    assert decide(replace(TWO, verdict=Verdict.SICK_NODE, **WITHOUT_N2)).delay_s == 0  # type: ignore[arg-type]
    unknown = replace(TWO, crashes_here=2, crash_limit=99)
    assert [decide(replace(unknown, without_progress=n)).delay_s for n in (1, 2, 3, 40)] == [60, 120, 240, 3600]


def test_too_many_to_leave_out_are_named_with_their_reasons() -> None:
    reason = decide(replace(TWO, verdict=Verdict.SICK_NODE, **SPARE, **MANY)).reason  # type: ignore[arg-type]  # a dict of mixed kinds
    assert "n2: ECC; n3: lost" in reason and "MAX_EXCLUDED_SHARE" in reason


@pytest.mark.parametrize(
    ("nodes", "share", "most"),
    [(1, 0.25, 0), (2, 0.25, 1), (3, 0.25, 1), (7, 0.25, 1), (8, 0.25, 2), (64, 0.25, 16), (4, 0.0, 1), (4, 1.0, 3)],
)
def test_a_job_leaves_out_a_share_of_the_nodes_one_at_least_and_never_all(nodes: int, share: float, most: int) -> None:
    assert most_excluded(nodes, share) == most


situations = st.builds(
    Situation,
    verdict=st.none() | st.sampled_from(Verdict),
    reason=st.just("why"),
    asked=st.sampled_from(Asked),
    sick=st.sampled_from([{}, {"n2": "ECC"}]),
    healthy=st.integers(0, 4),
    needed=st.integers(1, 3),
    progressed=st.booleans(),
    without_progress=st.integers(0, 5),
    crashes_here=st.integers(0, 5),
    fruitless_starts=st.integers(0, 5),
)


BY_ITSELF = (Verdict.USER_ERROR, Verdict.STOPPED, Verdict.GAVE_UP, Verdict.COMPLETE)


@given(now=situations)
def test_what_holds_always(now: Situation) -> None:
    action = decide(now)
    if action.kind is Kind.LAUNCH:
        assert now.asked is Asked.NOBODY
        assert now.without_progress < now.crash_limit
        assert now.healthy >= now.needed
        assert now.verdict is not None  # a launch that the checks did not allow
    if now.verdict in BY_ITSELF:
        assert action.kind in (Kind.STOP, Kind.LEAVE)
    if now.asked is Asked.PREEMPTED and now.verdict not in BY_ITSELF:
        assert action.kind is Kind.REQUEUE  # also where the save failed
    if now.asked in (Asked.CANCELLED, Asked.REQUEUED, Asked.REPLACED):
        assert action.kind is Kind.LEAVE
    if action.kind is Kind.STOP and now.asked is Asked.TIME_LIMIT and now.verdict not in BY_ITSELF:
        assert max(now.without_progress, now.fruitless_starts) >= now.crash_limit
    assert 0 <= action.delay_s <= LONGEST_BACKOFF_S
    assert action.delay_s == 0 or action.kind is Kind.REQUEUE
    assert (action.kind is Kind.STOP and action.code == 0) == (
        now.verdict is Verdict.COMPLETE and action.kind is Kind.STOP
    )


@given(now=situations, other=situations)
def test_reasons_name_what_happened(now: Situation, other: Situation) -> None:
    told = replace(now, reason="something odd", sick=other.sick)
    action = decide(told)
    if action.kind in (Kind.STOP, Kind.LAUNCH):
        assert "something odd" in action.reason
    if action.kind is Kind.LEAVE:
        assert told.asked in action.reason


@given(delays=st.lists(st.integers(1, 60), min_size=2, max_size=6).map(sorted), backoff_s=st.floats(0, 1e6))
def test_waits_never_get_shorter(delays: list[int], backoff_s: float) -> None:
    waits = [
        decide(replace(TWO, crashes_here=2, crash_limit=99, without_progress=n, backoff_s=backoff_s)).delay_s
        for n in delays
    ]
    assert waits == sorted(waits)
    assert max(waits) <= LONGEST_BACKOFF_S
