"""Ends a learning-rate range test once the loss has diverged."""

from typing import Any

from scaletrain.monitors import names
from scaletrain.monitors.lr_range import Divergence
from scaletrain.protocols import Callback, Run


class RangeTest(Callback):
    """Watches the loss of a run whose schedule is range_test; all ranks see the same and decide the same."""

    def __init__(self, steps: int) -> None:
        """Begins without a loss.

        Args:
            steps: Steps of the whole test.
        """
        self._divergence = Divergence(steps)

    def on_step_end(self, run: Run, metrics: dict[str, float]) -> None:
        """Judges the step."""
        result = run.last_step
        assert result is not None  # this is the end of one
        # An update that fp16 leaves out, while it looks for its loss scale, says nothing about the rate.
        is_bad = not result.applied and not result.overflow
        if self._divergence.observe(result.loss) or is_bad:
            run.complete_because = f"the loss diverged at a learning rate of {metrics[names.OPTIM_LR]:.3g}"

    def state_dict(self) -> dict[str, Any]:
        """The losses so far."""
        return self._divergence.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes them back."""
        self._divergence.load_state_dict(state)
