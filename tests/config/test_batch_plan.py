from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaletrain.config.batch_plan import FILLING, BatchPlan, BatchSchedule
from scaletrain.config.schema import TrainConfig
from scaletrain.errors import ConfigError
from scaletrain.protocols import SequenceRange

sizes = st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 9)).filter(lambda size: size[1] <= size[0])


@given(sizes, st.integers(0, 10**9))
def test_ranks_together_hold_each_sequence_of_the_step_once(size: tuple[int, int, int], first: int) -> None:
    plan = BatchPlan(*size)
    held = []
    for rank in range(plan.world_size):
        micro_batches = plan.micro_batches(rank, first)
        assert len(micro_batches) == plan.micro_steps
        assert all(len(micro_batch) == plan.micro_batch_size for micro_batch in micro_batches)
        held += [index for micro_batch in micro_batches for index in micro_batch]
    real = [index for index in held if index != FILLING]
    assert sorted(real) == list(range(first, first + plan.global_batch_size))
    # Whatever the sizes, a sequence belongs to the same rank of as many: so lanes stay with their ranks.
    for rank in range(plan.world_size):
        assert set(plan.sequences(rank, first)) == {index for index in real if index % plan.world_size == rank}
    assert plan.filling_share == pytest.approx(1 - len(real) / len(held))


def test_sizes_that_divide_lose_nothing() -> None:
    plan = BatchPlan(global_batch_size=32, micro_batch_size=4, world_size=4)
    assert (plan.micro_steps, plan.filling_share) == (2, 0.0)
    assert plan.micro_batches(rank=1, first_sequence=32) == [[33, 37, 41, 45], [49, 53, 57, 61]]


def test_a_share_that_does_not_divide_is_filled_up() -> None:
    plan = BatchPlan(global_batch_size=8, micro_batch_size=2, world_size=3)
    assert [plan.micro_batches(rank, 0) for rank in range(3)] == [
        [[0, 3], [6, FILLING]],
        [[1, 4], [7, FILLING]],
        [[2, 5], [FILLING, FILLING]],
    ]
    assert plan.filling_share == pytest.approx(1 / 3)


def test_a_micro_batch_larger_than_the_global_batch_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"micro_batch_size is 16, larger than .* 8"):
        BatchPlan(global_batch_size=8, micro_batch_size=16, world_size=1)
    with pytest.raises(ConfigError, match="world_size is 0"):
        BatchPlan(global_batch_size=8, micro_batch_size=1, world_size=0)


phases = st.lists(st.tuples(st.integers(1, 200), st.integers(1, 20)), max_size=3, unique_by=lambda phase: phase[0])


@given(phases.map(sorted), st.integers(1, 20), st.integers(0, 60), st.integers(0, 60))
def test_a_schedule_in_closed_form_is_the_walk_through_it(
    phases: list[tuple[int, int]], last: int, done: int, more: int
) -> None:
    schedule = BatchSchedule(tuple(phases), last)
    firsts = [0]
    for _ in range(done + more):
        firsts.append(firsts[-1] + schedule.size_at(firsts[-1]))
    assert schedule.sequence_after(0, done + more) == firsts[-1]
    assert schedule.sequence_after(firsts[done], more) == firsts[-1]
    assert schedule.steps_between(0, firsts[done]) == done
    assert schedule.steps_between(firsts[done], firsts[-1]) == more
    for first in firsts:
        assert schedule.size_at(first) == next((size for until, size in phases if first < until), last)


ranges = st.lists(st.tuples(st.integers(0, 300), st.integers(1, 60)), max_size=4)


@given(phases.map(sorted), st.integers(1, 20), ranges, st.integers(0, 40), st.integers(0, 40))
def test_what_is_left_out_is_passed_over_at_the_border_of_a_step(
    phases: list[tuple[int, int]], last: int, ranges: list[tuple[int, int]], done: int, more: int
) -> None:
    left_out = [SequenceRange(first, first + length) for first, length in ranges]
    schedule = BatchSchedule.of(TrainConfig(global_batch_size=last, micro_batch_size=1), left_out)
    schedule = replace(schedule, phases=tuple(phases))
    firsts, border = [], 0
    for _ in range(done + more + 1):
        while any(one.first <= border < one.stop for one in left_out):
            border += 1
        firsts.append(border)
        border += schedule.size_at(border)
    assert schedule.sequence_after(0, done + more) == firsts[-1]
    assert schedule.sequence_after(firsts[done], more) == firsts[-1]
    assert schedule.steps_between(0, firsts[done]) == done
    assert schedule.steps_between(firsts[done], firsts[-1]) == more


def test_a_schedule_ends_its_phases_at_tokens() -> None:
    train = TrainConfig(
        max_seq_len=10, global_batch_size=8, batch_schedule=({"until_tokens": 31, "global_batch_size": 2},)
    )
    schedule = BatchSchedule.of(train)
    assert [schedule.size_at(sequence) for sequence in (0, 3, 4, 100)] == [2, 2, 8, 8]
    assert schedule.plan_at(2, 2, 1).micro_steps == 1 and schedule.plan_at(4, 2, 1).micro_steps == 4
