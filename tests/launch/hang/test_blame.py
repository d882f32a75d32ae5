"""Who is named, from what the keepers saw."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaletrain.launch.hang.blame import Gone, judge
from scaletrain.launch.hang.evidence import MOVING, Evidence
from scaletrain.launch.hang.heartbeat import Phase
from scaletrain.launch.verdicts import Verdict

WAITS = Evidence(
    rank=0,
    host="n0",
    gpu="",
    pid=10,
    step=7,
    phase=Phase.BACKWARD,
    ordinal=3,
    micro_step=0,
    seconds=700.0,
    limit_s=600.0,
    state="S",
    cpu_share=0.0,
    collective="all_reduce",
    has_stacks=True,
    wchan="futex_wait_queue",
)


def ranks(world_size: int, **others: Evidence) -> dict[int, Evidence]:
    """Ranks that wait, two on a machine, but for some."""
    seen = {rank: replace(WAITS, rank=rank, host=f"n{rank // 2}") for rank in range(world_size)}
    return seen | {int(name[1:]): other for name, other in others.items()}


def as_rank(rank: int, **changes: Any) -> Evidence:
    return replace(WAITS, rank=rank, host=f"n{rank // 2}", **changes)


@pytest.mark.parametrize(
    ("culprit", "words"),
    [
        (as_rank(2, state="T"), "stopped"),
        (as_rank(2, state="D", collective=""), "blocked in the kernel"),
        (as_rank(2, state=""), "gone"),
        (as_rank(2, phase=Phase.DATA, ordinal=0, collective="", workers="its worker 7 is stopped"), "its worker 7 is"),
        (as_rank(2, phase=Phase.ERROR, ordinal=4), "in error of step 7"),
        (as_rank(2, phase=Phase.DATA, ordinal=0, collective=""), "in data of step 7"),
        (as_rank(2, step=6, phase=Phase.SAVE, ordinal=9, collective=""), "in save of step 6"),
        (as_rank(2, collective="", cpu_share=1.0, state="R"), "running (100% of a core) in backward"),
        (as_rank(2, collective="", has_stacks=False), "sleeping in backward"),
        (as_rank(2, phase=Phase.FORWARD, ordinal=2), "waits in all_reduce in forward"),
        (as_rank(2, moved_on=True, seconds=1.0, ordinal=5), "in backward of step 7, micro step 0 for 1 s"),
    ],
)
def test_the_one_that_did_not_arrive_is_named_with_its_machine(culprit: Evidence, words: str) -> None:
    judgement = judge(ranks(4, _2=culprit), {}, 4, {})
    assert (judgement.verdict, judgement.blamed, judgement.hosts) == (Verdict.HANG, (2,), ("n1",))
    assert "rank 2 on n1" in judgement.conclusion and words in judgement.conclusion


def test_a_rank_that_has_ended_is_what_the_others_wait_for_and_they_end_like_it() -> None:
    gone = {1: Gone(1, "n0", Verdict.SICK_NODE, "uncorrectable ECC error", ("n0",))}
    seen = ranks(4, _3=as_rank(3, phase=Phase.FORWARD, ordinal=2))
    judgement = judge({rank: one for rank, one in seen.items() if rank != 1}, gone, 4, {})
    assert (judgement.verdict, judgement.blamed, judgement.hosts) == (Verdict.SICK_NODE, (1,), ("n0",))
    assert "rank 1 on n0 had ended (sick_node: uncorrectable ECC error), and this waited" in judgement.conclusion


def test_a_machine_that_says_nothing_is_named_once_nobody_else_stands_out() -> None:
    seen = {rank: one for rank, one in ranks(4).items() if rank < 2}
    hosts = {0: "n0", 1: "n0", 2: "n1", 3: "n1"}
    judgement = judge(seen, {}, 4, hosts)
    assert (judgement.blamed, judgement.hosts) == ((2, 3), ("n1",))
    assert "nobody has spoken for rank 2 on n1; rank 3 on n1" in judgement.conclusion
    busy = judge(seen | {1: as_rank(1, collective="", state="R")}, {}, 4, hosts)
    assert busy.blamed == (1,), "a keeper that is late must not hide who holds the others up"
    # One rank that is silent beside one that speaks, on the same machine: that is no reason to do without the machine.
    assert judge(ranks(3), {}, 4, hosts).hosts == ()


def test_of_a_keeper_that_is_gone_not_the_machine_is_told() -> None:
    hosts = {0: "n0", 1: "n0", 2: "n1", 3: "n1"}
    gone = judge({rank: one for rank, one in ranks(4).items() if rank != 2}, {}, 4, hosts)
    assert gone.blamed == (2,) and gone.hosts == () and "2.pid" in gone.why and "may be down" not in gone.why
    assert "may be down" in judge({rank: one for rank, one in ranks(4).items() if rank != 2}, {}, 4, {}).why


def test_ranks_that_go_on_while_they_are_looked_at_are_not_compared() -> None:
    """One was stopped and continued: of those that waited for it some seem to be behind, or in no collective."""
    moving = as_rank(1, step=9, state=MOVING, collective="", cpu_share=1.0, moved_on=True)
    innocent = as_rank(2, phase=Phase.AGREE, ordinal=1, collective="")
    slow = judge(ranks(4, _1=moving, _2=innocent), {}, 4, {})
    assert (slow.blamed, slow.hosts) == ((), ()) and "slow at step 7" in slow.conclusion
    assert moving.stands == "moving on" and judge({1: moving}, {}, 1, {}).blamed == ()
    for stands in (as_rank(3, state="T"), as_rank(3, phase=Phase.ERROR)):
        assert judge(ranks(4, _1=moving, _2=innocent, _3=stands), {}, 4, {}).blamed == (3,)


def test_all_in_one_collective_blames_nobody() -> None:
    judgement = judge(ranks(4), {}, 4, {})
    assert (judgement.blamed, judgement.hosts) == ((), ())
    assert "all ranks wait for each other in backward" in judgement.conclusion and "network" in judgement.why
    alike = judge({rank: replace(one, collective="") for rank, one in ranks(4).items()}, {}, 4, {})
    assert alike.blamed == () and "none can be told from the others" in alike.conclusion


def test_several_on_two_machines_name_no_machine_and_many_are_counted() -> None:
    stopped = {rank: as_rank(rank, state="T") for rank in range(1, 8)}
    judgement = judge(ranks(9) | stopped, {}, 9, {})
    assert judgement.blamed == tuple(range(1, 8)) and judgement.hosts == ()
    assert "and 3 more" in judgement.conclusion


def test_a_machine_without_another_is_not_to_be_done_without() -> None:
    judgement = judge(ranks(2, _1=as_rank(1, state="T")), {}, 2, {})
    assert (judgement.blamed, judgement.hosts) == ((1,), ())
    assert judge(ranks(2, _1=as_rank(1, state="T")), {}, 4, {2: "n1", 3: "n1"}).hosts == ("n0",)


def test_a_rank_alone() -> None:
    judgement = judge({0: as_rank(0, collective="", state="R")}, {}, 1, {})
    assert (
        judgement.blamed == (0,)
        and judgement.hosts == ()
        and "rank 0 on n0 does not move on: running" in judgement.conclusion
    )


@given(
    st.lists(
        st.builds(
            lambda step, ordinal, state, collective, moved: replace(
                WAITS, step=step, ordinal=ordinal, state=state, collective=collective, moved_on=moved
            ),
            st.integers(0, 3),
            st.integers(0, 3),
            st.sampled_from(["R", "S", "D", "T", "", MOVING]),
            st.sampled_from(["", "all_reduce"]),
            st.booleans(),
        ),
        min_size=1,
        max_size=6,
    ),
    st.integers(0, 3),
)
def test_whatever_is_seen_there_is_a_judgement_and_never_all_are_blamed(seen: list[Evidence], unseen: int) -> None:
    found = {rank: replace(one, rank=rank, host=f"n{rank}") for rank, one in enumerate(seen)}
    world_size = len(found) + unseen
    judgement = judge(found, {}, world_size, {})
    assert judgement.conclusion and judgement.why and len(judgement.hosts) <= 1
    assert set(judgement.blamed) <= set(range(world_size))
    assert len(judgement.blamed) < world_size or world_size == 1
    assert Evidence.from_json(found[0].to_json()) == found[0]
