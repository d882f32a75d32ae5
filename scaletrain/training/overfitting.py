"""Watches whether what is learnt holds on other text: the gap between the losses, and early stopping."""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

from scaletrain.monitors import names
from scaletrain.protocols import Callback, Run

logger = logging.getLogger(__name__)


class Overfitting(Callback):
    """Compares validation losses with those of the training in between, and ends a run that no longer improves."""

    def __init__(self, patience: int, agree: Callable[[Sequence[bool]], Sequence[int]]) -> None:
        """Starts with nothing seen.

        Args:
            patience: Evaluations in a row without a lower loss after which the run is complete; 0 for no end.
            agree: Counts over the ranks who wants what; every rank calls it.
        """
        self._patience = patience
        self._agree = agree
        self._loss_sum = 0.0
        self._targets = 0.0
        self._best: float | None = None
        self._best_step = 0
        self._without = 0

    @property
    def reason(self) -> str:
        """Why the run is over; empty while it is not."""
        if not self._patience or self._without < self._patience:
            return ""
        return f"the validation loss was lowest at step {self._best_step}, and {self._without} evaluations ago"

    def on_step_end(self, run: Run, metrics: dict[str, float]) -> None:
        """Adds a step to those since the last evaluation."""
        loss, targets = metrics[names.TRAIN_LOSS], metrics[names.TRAIN_TARGET_TOKENS]
        if math.isfinite(loss):
            self._loss_sum += loss * targets
            self._targets += targets

    def on_eval(self, run: Run, metrics: dict[str, float]) -> None:
        """Tells the gap, and counts evaluations that were no better; a better one is saved."""
        if names.EVAL_LOSS not in metrics:
            return
        loss = metrics[names.EVAL_LOSS]
        if self._targets:
            metrics[names.EVAL_GAP] = loss - self._loss_sum / self._targets
        self._loss_sum, self._targets = 0.0, 0.0
        if not self._patience:
            return
        # All ranks have the same sums, and yet none may go on alone.
        if self._agree((self._best is None or loss < self._best,))[0]:
            self._best, self._best_step, self._without = loss, run.state.step, 0
            run.save_requested = True
        else:
            self._without += 1
        if self.reason and not run.complete_because:
            run.complete_because = self.reason
            run.record_event("early_stop", best_step=self._best_step, best_loss=self._best)

    def state_dict(self) -> dict[str, Any]:
        """The best so far, and the sums since the last evaluation."""
        return {
            "loss_sum": self._loss_sum,
            "targets": self._targets,
            "best": self._best,
            "best_step": self._best_step,
            "without": self._without,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what ``state_dict`` gave."""
        self._loss_sum, self._targets = state.get("loss_sum", 0.0), state.get("targets", 0.0)
        self._best, self._best_step = state.get("best"), state.get("best_step", 0)
        self._without = state.get("without", 0)
