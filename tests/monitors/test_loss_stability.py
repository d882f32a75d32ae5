"""A loss that stands out is told from noise of any kind, and by a restart as by a run that was never cut."""

import json
import math
import random
from collections.abc import Callable

import pytest

from scaletrain.monitors.loss_stability import LossStability

Curve = Callable[[int, random.Random], float]


def scores(stability: LossStability, losses: list[float]) -> list[float | None]:
    return [stability.observe(loss) for loss in losses]


def drawn(curve: Curve, steps: int, seed: int = 0) -> list[float]:
    draw = random.Random(seed)
    return [curve(step, draw) for step in range(steps)]


def highest_in_a_row(curve: Curve, steps: int, in_a_row: int) -> float:
    """The highest threshold that so many steps in a row reach, with the sizes that a run has by default."""
    found = [-math.inf if score is None else score for score in scores(LossStability(128, 16), drawn(curve, steps))]
    return max(min(found[step : step + in_a_row]) for step in range(steps - in_a_row))


def mixed(rare: float, easy_nats: float, hard_nats: float, sequences: int) -> Curve:
    """Batches of an easy source, a share of which come from a hard one."""

    def loss(step: int, draw: random.Random) -> float:
        hard = sum(draw.random() < rare for _ in range(sequences))
        return (hard * hard_nats + (sequences - hard) * easy_nats) / sequences + draw.gauss(0, 0.05)

    return loss


def log_normal(middle: float, sigma: float) -> Curve:
    return lambda step, draw: math.exp(draw.gauss(math.log(middle), sigma))


def student(freedom: int) -> Curve:
    def loss(step: int, draw: random.Random) -> float:
        scale = math.sqrt(sum(draw.gauss(0, 1) ** 2 for _ in range(freedom)) / freedom)
        return 2.5 + 0.05 * draw.gauss(0, 1) / scale

    return loss


def test_the_score_is_that_of_the_formula() -> None:
    stability = LossStability(window_steps=8, guard_steps=2)
    assert scores(stability, [1.0, 2.0, 3.0, 4.0, 90.0, 90.0]) == [None] * 6
    # The window holds 1 to 4: median 2.5; distances 1.5, 0.5, 0.5, 1.5: their median is 1.
    assert stability.observe(5.5) == pytest.approx(3 / 1.4826)
    # With 90 in it: median 3; distances 2, 1, 0, 1, 87: the largest stands at 2.576 deviations.
    assert stability.observe(20.0) == pytest.approx(17 * 2.576 / 87)
    alike = LossStability(window_steps=8, guard_steps=1)
    scores(alike, [5.0] * 9)
    assert alike.observe(5.1) == pytest.approx(1.0)  # 2 % of the median


@pytest.mark.parametrize(
    ("curve", "singles_stand_out"),
    [
        (lambda step, draw: 2.5 + 8 * math.exp(-step / 60) + draw.gauss(0, 0.03), False),
        (mixed(0.002, 2, 8, 32), False),
        (mixed(0.01, 2, 6, 8), False),
        (mixed(0.05, 2, 6, 8), False),
        (mixed(0.002, 2, 8, 8), True),
        (log_normal(0.01, 1.0), True),
        (log_normal(0.3, 1.0), True),
        (log_normal(0.3, 1.5), True),
        (student(3), True),
        (student(2), True),
        (lambda step, draw: 0.003 + abs(draw.gauss(0, 0.001)) + 0.3 * (draw.random() < 0.01), True),
    ],
    ids=["falling", "rare_32", "rare", "often", "rarest", "tiny", "sft", "broad_sft", "t3", "t2", "memorised"],
)
def test_a_sound_loss_is_never_high_three_times_in_a_row(curve: Curve, singles_stand_out: bool) -> None:
    assert highest_in_a_row(curve, 5000, in_a_row=3) < 5
    if singles_stand_out:  # so one alone must not count
        assert highest_in_a_row(curve, 5000, in_a_row=1) > 5


@pytest.mark.parametrize(
    ("rise", "within_steps"),
    [
        (lambda since: 1.0, 3),
        (lambda since: min(3.0, since * 3 / 20), 9),
        (lambda since: min(1.5, since * 1.5 / 20), 14),
    ],
    ids=["jump", "climb", "slow_climb"],
)
def test_a_divergence_is_found_within_a_few_steps(rise: Callable[[int], float], within_steps: int) -> None:
    def loss(step: int, draw: random.Random) -> float:
        return 2.5 + math.exp(-step / 300) + draw.gauss(0, 0.05) + (rise(step - 999) if step >= 1000 else 0)

    found = [score or 0.0 for score in scores(LossStability(128, 16), drawn(loss, 1000 + within_steps))]
    assert min(found[-3:]) >= 10 and max(found[:1000]) < 5


def test_what_is_judged_does_not_move_what_it_is_judged_by() -> None:
    stability = LossStability(128, 16)
    scores(stability, [2.5] * 200)
    assert scores(stability, [6.0] * 16) == [pytest.approx(3.5 / 0.05)] * 16


def test_nothing_is_told_before_half_a_window_and_after_forgetting() -> None:
    stability = LossStability(8, 3)
    assert scores(stability, [2.0] * 7) == [None] * 7 and stability.observe(2.0) == 0.0
    stability.forget()
    assert scores(stability, [9.0] * 7) == [None] * 7 and stability.observe(9.0) == 0.0


def test_a_loss_near_zero_or_not_finite_is_no_spike_of_nothing() -> None:
    stability = LossStability(8, 1)
    scores(stability, [0.001] * 8)
    assert stability.observe(0.011) == pytest.approx(1.0)
    assert stability.observe(math.nan) is None and stability.observe(math.inf) is None
    assert stability.observe(0.001) == 0.0


def test_a_restart_decides_the_same() -> None:
    losses = drawn(lambda step, draw: 3 + 7 * math.exp(-step / 40) + draw.gauss(0, 0.05), 60)
    expected = scores(LossStability(16, 3), losses)
    first, second = LossStability(16, 3), LossStability(16, 3)
    before = scores(first, losses[:25])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert before + scores(second, losses[25:]) == expected
