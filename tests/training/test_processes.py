"""No rank waits for another one longer than the run allows, in whatever group."""

from datetime import timedelta

import pytest

from scaletrain.training.processes import CollectiveTimeoutError, naming_the_limit
from tests.distributed import run_on_ranks
from tests.training import collective_bodies as bodies


@pytest.mark.parametrize("stage", [1, 3])
def test_the_groups_of_deepspeed_have_the_limit_too(stage: int) -> None:
    for before, after in run_on_ranks(2, bodies.limits, stage, 77.5):
        assert len(before) == len(after) > 1, "DeepSpeed made no group of its own"
        assert set(before) == {timedelta(minutes=30)} and set(after) == {timedelta(seconds=77.5)}


def test_a_rank_that_waits_too_long_names_the_limit() -> None:
    # The ranks are given up after that: what follows an error in a group is undefined.
    words = r"a collective waited longer than train\.collective_timeout_s = 1\.5 s for another rank"
    with pytest.raises(AssertionError, match=words):
        run_on_ranks(2, bodies.wait_for_a_rank_that_stands_still, 1.5, timeout_s=bodies.STANDSTILL_S - 1)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ("Timed out after 6 seconds waiting for clients. 1/2 clients joined.", "another rank did not connect within"),
        ("wait timeout after 5000ms, keys: /default_pg/0//cpu//0/1", "another rank did not connect within"),
        ("Application timeout caused pair closure", "a collective waited longer than"),
    ],
)
def test_words_of_torch_are_told_by_the_limit(told: str, words: str) -> None:
    expected = rf"^{words} train\.collective_timeout_s = 5 s"
    with pytest.raises(CollectiveTimeoutError, match=expected) as raised, naming_the_limit(5):
        raise RuntimeError(told)
    assert str(raised.value.__cause__) == told


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match=r"^mat1 and mat2"), naming_the_limit(5):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
