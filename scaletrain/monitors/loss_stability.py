"""Tells a spike of the loss from its usual noise."""

import math
from collections import deque
from statistics import median
from typing import Any

_MAD_TO_SIGMA = 1.4826
_LEAST_SIGMA_NATS = 1e-3


class LossStability:
    """Compares each loss with the steps before it, by numbers that a spike itself can hardly move.

    The robust z-score of a loss is ``(loss - median) / (1.4826 MAD)`` over a window, MAD being the median of the
    distances from the median; the factor makes it a standard deviation where losses are normally distributed. A spread
    below 0.001 nats counts as 0.001, so that a loss that hardly moves has no spikes of nothing.

    Source: Leys et al. 2013, "Detecting outliers: Do not use standard deviation around the mean, use absolute deviation
    around the median".
    """

    def __init__(self, window_steps: int) -> None:
        """Begins without any loss.

        Args:
            window_steps: Steps that a loss is compared with.
        """
        self._losses: deque[float] = deque(maxlen=window_steps)

    def observe(self, loss: float) -> float | None:
        """Takes the loss of a step.

        Args:
            loss: In nats; one that is not finite is passed over.

        Returns:
            Its z-score against the steps before; None before the window is half full.
        """
        if not math.isfinite(loss):
            return None
        score = None
        assert self._losses.maxlen is not None  # it has a length
        if 2 * len(self._losses) >= self._losses.maxlen:
            middle = median(self._losses)
            spread = _MAD_TO_SIGMA * median(abs(other - middle) for other in self._losses)
            score = (loss - middle) / max(spread, _LEAST_SIGMA_NATS)
        self._losses.append(loss)
        return score

    def state_dict(self) -> dict[str, Any]:
        """The losses of the window, as JSON."""
        return {"losses": list(self._losses)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what ``state_dict`` gave, as much of it as the window holds now."""
        self._losses.clear()
        self._losses.extend(state.get("losses", ()))
