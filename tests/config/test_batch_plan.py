import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaletrain.config.batch_plan import FILLING, BatchPlan
from scaletrain.errors import ConfigError

sizes = st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 9)).filter(lambda size: size[1] <= size[0])


@given(sizes, st.integers(0, 10**9))
def test_ranks_together_hold_each_sequence_of_the_step_once(size: tuple[int, int, int], step: int) -> None:
    plan = BatchPlan(*size)
    held = []
    for rank in range(plan.world_size):
        micro_batches = plan.micro_batches(rank, step)
        assert len(micro_batches) == plan.micro_steps
        assert all(len(micro_batch) == plan.micro_batch_size for micro_batch in micro_batches)
        held += [index for micro_batch in micro_batches for index in micro_batch]
    real = [index for index in held if index != FILLING]
    assert sorted(real) == list(range(step * plan.global_batch_size, (step + 1) * plan.global_batch_size))
    assert plan.filling_share == pytest.approx(1 - len(real) / len(held))


def test_sizes_that_divide_lose_nothing() -> None:
    plan = BatchPlan(global_batch_size=32, micro_batch_size=4, world_size=4)
    assert (plan.micro_steps, plan.filling_share) == (2, 0.0)
    assert plan.micro_batches(rank=1, step=1) == [[33, 37, 41, 45], [49, 53, 57, 61]]


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
