"""Reads a learning-rate range test: which rates the loss falls at fastest, and where it diverges.

Source:
    Smith 2015, "Cyclical Learning Rates for Training Neural Networks" (arXiv 1506.01186), section 3.3; the exponential
    growth, the stop at four times the lowest loss and both suggestions are Howard's (fastai).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from scaletrain.errors import DataError
from scaletrain.monitors import names

DIVERGED_TIMES = 4.0
"""Times the lowest smoothed loss from which the training counts as diverged."""

_PARTS = 30
_LEAST_POINTS = 5


class Divergence:
    """Tells from the losses so far when a range test may end."""

    def __init__(self, steps: int) -> None:
        """Begins without a loss.

        Args:
            steps: Steps of the whole test.
        """
        self._keeps = _keeps(steps)
        self._sum = self._weight = 0.0
        self._lowest = math.inf

    def observe(self, loss: float) -> bool:
        """Takes the loss of the next step.

        Args:
            loss: It may be infinite or not a number.

        Returns:
            Whether it is not finite, or its mean over the last steps more than four times the lowest such mean.
        """
        self._sum = self._keeps * self._sum + loss
        self._weight = self._keeps * self._weight + 1.0
        mean = self._sum / self._weight
        if not mean <= DIVERGED_TIMES * self._lowest:  # true of NaN, too
            return True
        self._lowest = min(self._lowest, mean)
        return not math.isfinite(mean)

    def state_dict(self) -> dict[str, Any]:
        """What the next decision depends on."""
        return {"sum": self._sum, "weight": self._weight, "lowest": self._lowest if self._weight else None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes it back."""
        self._sum, self._weight = state.get("sum", 0.0), state.get("weight", 0.0)
        lowest = state.get("lowest")
        self._lowest = math.inf if lowest is None else lowest


@dataclass(frozen=True)
class RatePoint:
    """One step of the test.

    Attributes:
        step: Its number, from 1.
        lr: Its learning rate.
        loss: Training loss before its update, in nats for each target.
        smoothed: Mean of the losses around it, the nearer ones weighing more.
    """

    step: int
    lr: float
    loss: float
    smoothed: float


@dataclass(frozen=True)
class LrRange:
    """What a test has found.

    Attributes:
        points: Its steps with a finite loss, by ascending rate.
        steepest: Where the loss falls fastest for each order of magnitude of the rate; None where it never falls.
        lowest: Where the smoothed loss is lowest; None where it never falls.
        diverged_at: Rate of the step at which it was ended; None where it went through.
    """

    points: tuple[RatePoint, ...]
    steepest: RatePoint | None
    lowest: RatePoint | None
    diverged_at: float | None

    @property
    def tenth_of_lowest(self) -> float | None:
        """A tenth of the rate at which the loss is lowest: there it is about to rise, and a long run needs a margin."""
        return None if self.lowest is None else self.lowest.lr / 10.0


def read_range(lines: Sequence[Mapping[str, Any]], steps: int) -> LrRange:
    """Reads the metrics of a test.

    Args:
        lines: Content of metrics.jsonl, a dictionary for each step.
        steps: Steps of the whole test.

    Returns:
        What they say.

    Raises:
        DataError: There are too few steps to tell anything.
    """
    divergence, diverged_at = Divergence(steps), None
    kept: list[tuple[int, float, float]] = []
    for line in lines:
        lr, loss = line.get(names.OPTIM_LR), line.get(names.TRAIN_LOSS)
        if lr is None or loss is None:
            continue
        if divergence.observe(loss):
            diverged_at = lr
            break
        kept.append((line["step"], lr, loss))
    if len(kept) < _LEAST_POINTS:
        raise DataError(
            f"the loss diverged after {len(kept)} steps, and {_LEAST_POINTS} are needed to tell anything; begin at a "
            "lower rate, or take more steps"
        )
    if diverged_at is None and len(kept) < steps:  # by a gradient that was not finite
        diverged_at = kept[-1][1]
    smoothed = _smooth([loss for _, _, loss in kept], _keeps(steps))
    points = tuple(RatePoint(*one, mean) for one, mean in zip(kept, smoothed, strict=True))
    lowest = min(range(len(points)), key=lambda index: smoothed[index])
    # Rates are equally far apart in their logarithms, so that differences of losses compare as slopes do.
    falls = {index: smoothed[index + 1] - smoothed[index - 1] for index in range(1, min(lowest + 1, len(points) - 1))}
    steepest = min(falls, key=lambda index: falls[index], default=None)
    if steepest is None or falls[steepest] >= 0:
        return LrRange(points, None, None, diverged_at)
    return LrRange(points, points[steepest], points[lowest], diverged_at)


def _keeps(steps: int) -> float:
    """Share of its weight that a loss keeps from step to step: a thirtieth of the test is smoothed together."""
    return math.exp(-1.0 / max(1.0, steps / _PARTS))


def _smooth(losses: Sequence[float], keeps: float) -> list[float]:
    """Means over the losses on both sides. One over those before alone would lag, and name rates that are too high."""
    before, after = _decaying_sums(losses, keeps), _decaying_sums(losses[::-1], keeps)[::-1]
    weights = _decaying_sums([1.0] * len(losses), keeps)
    return [
        (left + right - loss) / (weight + opposite - 1.0)
        for left, right, loss, weight, opposite in zip(before, after, losses, weights, weights[::-1], strict=True)
    ]


def _decaying_sums(values: Sequence[float], keeps: float) -> list[float]:
    return list(accumulate(values, lambda total, value: keeps * total + value))
