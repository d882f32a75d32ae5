"""A range test is read right: where the loss falls fastest, where it is lowest, and where it has diverged."""

import json
import math
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaletrain.errors import DataError
from scaletrain.monitors import names
from scaletrain.monitors.lr_range import Divergence, LrRange, read_range
from scaletrain.monitors.lr_range_text import range_chart, range_content, range_lines


def course(steps: int, *, falls_at: float, diverges_at: float, noise: float = 0.0) -> list[dict[str, float]]:
    """Losses over rates from 1e-6 to 1: they fall by a logistic curve, and grow with the rate's square at the end."""
    lines = []
    for index in range(steps):
        lr = 1e-6 ** (1 - index / (steps - 1))
        fallen = 1 / (1 + math.exp(-3 * (math.log10(lr) - math.log10(falls_at))))
        loss = 9.0 - 5.0 * fallen + (lr / diverges_at) ** 2 + noise * math.sin(7 * index)
        lines.append({"step": index + 1, names.OPTIM_LR: lr, names.TRAIN_LOSS: loss})
    return lines


def decades(found: float | None, expected: float) -> float:
    assert found is not None
    return abs(math.log10(found) - math.log10(expected))


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("falls_at", [1e-4, 1e-3])
def test_it_finds_the_steepest_descent_and_the_lowest_loss(falls_at: float, noise: float) -> None:
    lines = course(120, falls_at=falls_at, diverges_at=0.05, noise=noise)
    found = read_range(lines, 120)
    assert found.steepest is not None and found.lowest is not None
    # The curve is steepest in its middle; smoothing must not move it, as a mean over the past would.
    assert decades(found.steepest.lr, falls_at) < 0.25
    exact = min(lines, key=lambda line: line[names.TRAIN_LOSS])[names.OPTIM_LR]
    assert decades(found.lowest.lr, exact) < 0.4
    assert found.tenth_of_lowest == pytest.approx(found.lowest.lr / 10)


def test_it_ends_where_the_loss_is_four_times_the_lowest() -> None:
    lines = course(200, falls_at=1e-4, diverges_at=0.02)
    found = read_range(lines, 200)
    assert found.diverged_at is not None
    at = next(line[names.TRAIN_LOSS] for line in lines if line[names.OPTIM_LR] == found.diverged_at)
    # Its smoothed loss is above 4 times the lowest, so the loss of that step is above it too, and that long before 1.
    assert at > 16 and found.diverged_at < 0.5
    assert found.points[-1].lr < found.diverged_at


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_it(bad: float) -> None:
    lines = course(60, falls_at=1e-4, diverges_at=0.5)
    lines[40][names.TRAIN_LOSS] = bad
    found = read_range(lines, 60)
    assert found.diverged_at == lines[40][names.OPTIM_LR] and len(found.points) == 40


def test_a_run_that_ended_before_its_last_step_had_diverged() -> None:
    lines = course(60, falls_at=1e-4, diverges_at=0.5)[:45]
    assert read_range(lines, 60).diverged_at == lines[-1][names.OPTIM_LR]
    assert read_range(lines, 45).diverged_at is None


@given(st.lists(st.floats(0.1, 10), min_size=5, max_size=50))
def test_smoothed_losses_lie_between_the_losses(losses: list[float]) -> None:
    lines = [{"step": n + 1, names.OPTIM_LR: 10.0 ** (n / 10), names.TRAIN_LOSS: loss} for n, loss in enumerate(losses)]
    try:
        points = read_range(lines, len(losses)).points
    except DataError:  # diverged early
        return
    kept = [point.loss for point in points]
    assert all(min(kept) - 1e-9 <= point.smoothed <= max(kept) + 1e-9 for point in points)


@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=40), st.integers(1, 39))
def test_a_restart_decides_the_same(losses: list[float], cut: int) -> None:
    whole = Divergence(40)
    expected = [whole.observe(loss) for loss in losses]
    first, second = Divergence(40), Divergence(40)
    found = [first.observe(loss) for loss in losses[:cut]]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert found + [second.observe(loss) for loss in losses[cut:]] == expected


def test_a_loss_that_never_falls_suggests_nothing() -> None:
    lines = [{"step": n + 1, names.OPTIM_LR: 1e-3 * 1.1**n, names.TRAIN_LOSS: 3.0 + 0.1 * n} for n in range(40)]
    found = read_range(lines, 40)
    assert found.steepest is None and found.tenth_of_lowest is None
    assert "never fell" in "\n".join(range_lines(found))
    assert range_content(found)["steepest_descent"] is None
    assert ET.fromstring(range_chart(found)).tag.endswith("svg")


def test_too_few_steps_are_told() -> None:
    lines = [{"step": n + 1, names.OPTIM_LR: 10.0**n, names.TRAIN_LOSS: 2.0 * 30.0**n} for n in range(10)]
    with pytest.raises(DataError, match="diverged after"):
        read_range(lines, 10)


@pytest.fixture
def found() -> LrRange:
    return read_range(course(120, falls_at=1e-4, diverges_at=0.05), 120)


def test_the_table_and_the_file_say_the_same(found: LrRange) -> None:
    assert found.steepest is not None and found.lowest is not None
    text, content = "\n".join(range_lines(found)), json.loads(json.dumps(range_content(found)))
    assert content["steepest_descent"] == found.steepest.lr and content["diverged_at"] == found.diverged_at
    assert content["tenth_of_lowest"] == found.tenth_of_lowest and len(content["steps"]) == len(found.points)
    assert f"Steepest descent at {found.steepest.lr:.2e}" in text and f"{found.tenth_of_lowest:.2e}" in text
    rows = [line.split() for line in text.splitlines()]
    assert [f"{found.steepest.step}", f"{found.steepest.lr:.2e}"] in [row[:2] for row in rows if "steepest" in row]
    assert len(rows) < 30


def test_the_chart_is_a_file_of_its_own_with_both_marks(found: LrRange) -> None:
    root = ET.fromstring(range_chart(found))
    svg = "{http://www.w3.org/2000/svg}"
    assert root.tag == f"{svg}svg"
    assert [dot.get("class") for dot in root.iter(f"{svg}circle")] == ["dot steepest", "dot lowest"]
    assert len(list(root.iter(f"{svg}polyline"))) == 2
    labels = [text.text for text in root.iter(f"{svg}text")]
    assert "0.0001" in labels, "the axis shows rates, not their logarithms"


def test_a_test_that_ends_while_the_loss_falls_says_so() -> None:
    lines = course(100, falls_at=1e-4, diverges_at=1e9)[:80]
    text = "\n".join(range_lines(read_range(lines, 80)))
    assert "raise --max_lr" in text and "did not diverge" in text
