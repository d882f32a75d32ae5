"""Tells a loss that stands out from its usual noise, by numbers that such a loss can hardly move itself."""

import math
from collections import deque
from statistics import median
from typing import Any

_MAD_TO_SIGMA = 1.4826
_TAIL = 0.99
_TAIL_TO_SIGMA = 1 / 2.576  # 99 % of a normal distribution lie within so many standard deviations
_LEAST_SHARE_OF_MEDIAN = 0.02
_LEAST_SIGMA_NATS = 0.01


class LossStability:
    """Compares each loss with a window of those before it, the latest of them left out.

    The score of a loss is ``(loss - median) / scale`` over the window. The scale is the largest of

    - 1.4826 MAD, MAD being the median of the distances from the median,
    - the 99 % quantile of these distances, divided by 2.576: where a few losses in a hundred are high, as those with a
      rare and hard source are, such a loss is nothing new,
    - 2 % of the median, and 0.01 nats.

    The first two are the standard deviation where losses are normally distributed. The latest losses stand between the
    window and the loss that is judged: a rise over a few steps is no part yet of what it is judged by.

    Source: Leys et al. 2013, "Detecting outliers: Do not use standard deviation around the mean, use absolute deviation
    around the median"; guard cells as in Rohling 1983, "Radar CFAR thresholding in clutter and multiple target
    situations".
    """

    def __init__(self, window_steps: int, guard_steps: int) -> None:
        """Begins without any loss.

        Args:
            window_steps: Steps that a loss is compared with.
            guard_steps: Steps right before it that it is not compared with.
        """
        self._window_steps = window_steps
        self._guard_steps = guard_steps
        self._losses: deque[float] = deque(maxlen=window_steps + guard_steps)

    def observe(self, loss: float) -> float | None:
        """Takes the loss of a step.

        Args:
            loss: In nats; one that is not finite is passed over.

        Returns:
            Its score against the window; None before that is half full.
        """
        if not math.isfinite(loss):
            return None
        window = list(self._losses)[: max(0, len(self._losses) - self._guard_steps)]
        self._losses.append(loss)
        if 2 * len(window) < self._window_steps:
            return None
        middle = median(window)
        return (loss - middle) / _scale(window, middle)

    def forget(self) -> None:
        """Begins anew, as after a change of what the losses are of."""
        self._losses.clear()

    def state_dict(self) -> dict[str, Any]:
        """The losses of the window and behind it, as JSON."""
        return {"losses": list(self._losses)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what ``state_dict`` gave, as much of it as is held now."""
        self._losses.clear()
        self._losses.extend(state.get("losses", ()))


def _scale(window: list[float], middle: float) -> float:
    distances = sorted(abs(loss - middle) for loss in window)
    tail = distances[math.ceil(_TAIL * len(distances)) - 1]
    return max(
        _MAD_TO_SIGMA * median(distances), _TAIL_TO_SIGMA * tail, _LEAST_SHARE_OF_MEDIAN * middle, _LEAST_SIGMA_NATS
    )
