"""The learning rate is the formula of its schedule, at every step."""

import math
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from scaletrain.config.schema import OptimConfig
from scaletrain.optim.schedules import learning_rate

LR = 2e-3
FALLING = ("linear", "cosine", "wsd", "inverse_sqrt", "step", "constant")


def rates(schedule: str, steps: range, decay_steps: int = 100, **fields: object) -> list[float]:
    optim = OptimConfig(schedule=schedule, lr=LR, **fields)
    return [learning_rate(optim, step, decay_steps) for step in steps]


@pytest.mark.parametrize("schedule", FALLING)
def test_warm_up_rises_by_equal_steps_to_the_full_rate(schedule: str) -> None:
    found = rates(schedule, range(8), warmup_steps=8)
    assert found == pytest.approx([LR * (step + 1) / 8 for step in range(8)])


def test_constant() -> None:
    assert rates("constant", range(0, 500, 50), warmup_steps=0) == [LR] * 10


def test_linear() -> None:
    found = rates("linear", range(10, 120), warmup_steps=10, min_lr_ratio=0.2)
    assert found[:91] == pytest.approx([LR * (1 - 0.8 * passed / 90) for passed in range(91)])
    assert found[91:] == pytest.approx([0.2 * LR] * 19)


def test_cosine() -> None:
    found = rates("cosine", range(10, 120), warmup_steps=10, min_lr_ratio=0.1)
    wave = [0.1 + 0.9 * (1 + math.cos(math.pi * passed / 90)) / 2 for passed in range(91)]
    assert found == pytest.approx([LR * share for share in wave] + [0.1 * LR] * 19)


def test_warmup_stable_decay() -> None:
    found = rates("wsd", range(10, 120), warmup_steps=10, min_lr_ratio=0.0, cooldown_ratio=0.2)
    assert found[:71] == [LR] * 71  # to step 80, where the last fifth begins
    assert found[70:91] == pytest.approx([LR * (1 - passed / 20) for passed in range(21)], abs=1e-18)
    assert found[91:] == [0.0] * 19


def test_a_cool_down_longer_than_what_is_left_begins_after_the_warm_up() -> None:
    found = rates("wsd", range(50, 101), warmup_steps=50, min_lr_ratio=0.0, cooldown_ratio=1.0)
    assert found == pytest.approx([LR * (1 - passed / 50) for passed in range(51)], abs=1e-18)


def test_inverse_square_root_is_that_of_the_transformer_paper() -> None:
    warmup, d_model = 40, 512
    # d_model^-0.5 * min(n^-0.5, n * warmup^-1.5) with n counted from 1, scaled so that its peak is lr.
    paper = [d_model**-0.5 * min(n**-0.5, n * warmup**-1.5) for n in range(1, 400)]
    scale = LR / max(paper)
    assert rates("inverse_sqrt", range(399), warmup_steps=warmup) == pytest.approx([scale * rate for rate in paper])


def test_step() -> None:
    found = rates("step", range(5, 35), warmup_steps=5, step_every_steps=10, step_factor=0.5)
    assert found == pytest.approx([LR] * 10 + [LR / 2] * 10 + [LR / 4] * 10)


def test_range_test_grows_by_equal_factors_from_the_lowest_rate_to_the_highest() -> None:
    found = rates("range_test", range(101), warmup_steps=0, min_lr_ratio=1e-4)
    assert found[0] == pytest.approx(1e-4 * LR) and found[100] == LR
    factors = [later / earlier for earlier, later in pairwise(found)]
    assert factors == pytest.approx([1e4 ** (1 / 100)] * 100)
    assert rates("range_test", range(100, 110), warmup_steps=0, min_lr_ratio=1e-4) == [LR] * 10


@given(
    schedule=st.sampled_from(FALLING),
    warmup=st.integers(0, 50),
    decay_steps=st.integers(1, 200),
    minimum=st.floats(0, 1),
    cooldown=st.floats(0.01, 1),
    first=st.integers(0, 400),
    later=st.integers(0, 400),
)
def test_rates_rise_to_the_peak_and_never_again(
    schedule: str, warmup: int, decay_steps: int, minimum: float, cooldown: float, first: int, later: int
) -> None:
    assume(first <= later)
    optim = OptimConfig(
        schedule=schedule,
        lr=LR,
        warmup_steps=warmup,
        min_lr_ratio=minimum,
        cooldown_ratio=cooldown,
        step_every_steps=7,
    )
    early, late = learning_rate(optim, first, decay_steps), learning_rate(optim, later, decay_steps)
    assert 0 <= early <= LR * (1 + 1e-12) and 0 <= late <= LR * (1 + 1e-12)
    if later < warmup:
        assert early <= late
    if first >= warmup:
        assert late <= early * (1 + 1e-12)
    if schedule in ("linear", "cosine", "wsd"):
        last = max(decay_steps, warmup + 1)
        assert learning_rate(optim, last + later, decay_steps) == pytest.approx(minimum * LR, abs=1e-15)
