"""A spike is told from noise, from a falling loss, and by a restart as by a run that was never cut."""

import json
import math
import random

import pytest

from scaletrain.monitors.loss_stability import LossStability


def scores(stability: LossStability, losses: list[float]) -> list[float | None]:
    return [stability.observe(loss) for loss in losses]


def falling(steps: int) -> list[float]:
    draw = random.Random(1)
    return [3 + 7 * math.exp(-step / 40) + draw.gauss(0, 0.05) for step in range(steps)]


def test_the_score_is_that_of_the_formula() -> None:
    stability = LossStability(window_steps=8)
    assert scores(stability, [1.0, 2.0, 3.0, 4.0]) == [None] * 4
    # Median 2.5; distances 1.5, 0.5, 0.5, 1.5: their median is 1.
    assert stability.observe(5.5) == pytest.approx(3 / 1.4826)
    scores(stability, [6.0, 7.0, 8.0, 9.0, 10.0])
    # The window holds 8, 3 and later: median 6.5; distances 3.5, 2.5, 1, 0.5, 0.5, 1.5, 2.5, 3.5: their median is 2.
    assert stability.observe(12.5) == pytest.approx(6 / (1.4826 * 2))


def test_a_falling_and_noisy_loss_has_no_spike_and_a_spike_has_one() -> None:
    found = scores(LossStability(128), falling(1000))
    assert max(score for score in found if score is not None) < 6
    stability = LossStability(128)
    scores(stability, falling(500))
    high = stability.observe(6.0)
    assert high is not None and high > 20
    # One spike hardly moves what the next step is judged by.
    after = stability.observe(3.0)
    assert after is not None and abs(after) < 3


def test_a_loss_that_stands_still_has_no_spikes_of_nothing() -> None:
    stability = LossStability(8)
    scores(stability, [2.0] * 8)
    assert stability.observe(2.001) == pytest.approx(1.0)
    assert stability.observe(math.nan) is None and stability.observe(math.inf) is None
    assert stability.observe(2.0) == 0.0


def test_a_restart_decides_the_same() -> None:
    uncut, losses = LossStability(16), falling(60)
    expected = scores(uncut, losses)
    first, second = LossStability(16), LossStability(16)
    before = scores(first, losses[:25])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert before + scores(second, losses[25:]) == expected
