"""Decides from the results of the steps whether the run goes on, goes back before a mishap, or gives up."""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from scaletrain.config.schema import StabilityConfig
from scaletrain.errors import DivergenceError
from scaletrain.monitors.loss_stability import LossStability
from scaletrain.protocols import Callback, Run, SequenceRange, StepResult
from scaletrain.training.rollback import RollBack

logger = logging.getLogger(__name__)

MOST_OVERFLOWS = 50
"""Steps in a row that fp16 may leave out; it is a few dozen at most while it looks for its loss scale."""


class Stability(Callback):
    """Watches the loss and the steps that are not applied; all ranks see the same numbers and decide the same."""

    def __init__(
        self,
        config: StabilityConfig,
        can_go_back: Callable[[Run, int], bool],
        documents_of: Callable[[SequenceRange], Sequence[str]],
    ) -> None:
        """Begins without any history.

        Args:
            config: What counts as a mishap.
            can_go_back: Whether there is a checkpoint of a step or before; the same on all ranks, which all call it.
            documents_of: Names some documents of a range; the same on all ranks, which all call it.
        """
        self._config = config
        self._can_go_back = can_go_back
        self._documents_of = documents_of
        self._losses = LossStability(config.window_steps)
        self._forget()
        self._sequences = 0

    def _forget(self) -> None:
        # Where the last steps began, so that those up to a spike can be left out.
        self._begins: deque[int] = deque(maxlen=self._config.skip_steps)
        self._bad_steps = 0
        self._bad_since = 0
        self._overflows = 0

    def on_start(self, run: Run) -> None:
        """Notes where the first step begins."""
        self._sequences = run.state.sequences

    def on_step_end(self, run: Run, metrics: dict[str, float]) -> None:
        """Judges the step.

        Raises:
            RollBack: The run is to go back, and can.
            DivergenceError: It would have to go back once too often, or has nowhere to go back to.
        """
        result = run.last_step
        assert result is not None  # this is the end of one
        began, self._sequences = self._sequences, run.state.sequences
        self._begins.append(began)
        if result.applied:
            self._bad_steps = self._overflows = 0
            self._judge_loss(run, result)
            return
        run.record_event("skipped_step", grad_norm=str(result.grad_norm), loss=str(result.loss))
        logger.warning("step %d was not applied: gradient norm %s", run.state.step, result.grad_norm)
        if result.overflow:
            self._overflows += 1
            if self._overflows >= MOST_OVERFLOWS:
                raise DivergenceError(
                    f"{self._overflows} steps in a row had no finite gradient at any loss scale, the last with loss "
                    f"{result.loss}: the training has diverged. Set train.precision bf16, or lower optim.lr and go on "
                    "from a checkpoint before it: delete the later ones in the run's folder checkpoints/."
                )
            return
        if self._bad_steps == 0:
            self._bad_since = began
        self._bad_steps += 1
        if self._bad_steps >= self._config.bad_steps:
            self._end_bad_steps(run, result)

    def _judge_loss(self, run: Run, result: StepResult) -> None:
        score = self._losses.observe(result.loss)
        if score is None or not 0 < self._config.spike_zscore <= score:
            return
        reason = f"the loss of step {run.state.step} is {result.loss:.6g}, {score:.1f} deviations above those before it"
        steps = len(self._begins)
        self._refuse_too_many(run, self._begins[0], steps, reason)
        newest_step = run.state.step - steps
        if self._can_go_back(run, newest_step):
            raise RollBack(SequenceRange(self._begins[0], run.state.sequences), reason, newest_step)
        run.record_event("loss_spike", loss=result.loss, zscore=score)
        logger.warning("%s; the run goes on, as it has no intact checkpoint of step %d or before", reason, newest_step)

    def _end_bad_steps(self, run: Run, result: StepResult) -> None:
        steps = self._bad_steps
        ranks = ", ".join(f"rank {fault.rank} ({fault.host})" for fault in result.faults)
        whose = f"in the last one first on {ranks}" if ranks else "in the last one on no rank alone"
        reason = f"{steps} steps in a row had no finite loss or gradient, computed twice each, {whose}"
        self._refuse_too_many(run, self._bad_since, steps, reason)
        newest_step = run.state.step - steps
        if self._can_go_back(run, newest_step):
            raise RollBack(SequenceRange(self._bad_since, run.state.sequences), reason, newest_step)
        raise DivergenceError(
            f"{reason}: the training has diverged, and there is no intact checkpoint of step {newest_step} or before "
            "to go back to. Lower optim.lr or set optim.grad_clip, and start anew."
        )

    def _refuse_too_many(self, run: Run, first_sequence: int, steps: int, reason: str) -> None:
        gone_back = len(run.state.skipped_sequences)
        if gone_back < self._config.max_rollbacks:
            return
        documents = ", ".join(self._documents_of(SequenceRange(first_sequence, run.state.sequences)))
        last = run.state.step
        raise DivergenceError(
            f"{reason}. The run has gone back {gone_back} times before, and stability.max_rollbacks allows "
            f"{self._config.max_rollbacks}. Steps {last - steps + 1} to {last} hold sequences {first_sequence} to "
            f"{run.state.sequences - 1}, with these documents among others: {documents}. Look at them, lower optim.lr "
            "or set optim.grad_clip; a higher stability.max_rollbacks lets it go on as before."
        )

    def state_dict(self) -> dict[str, Any]:
        """The history that the next decision depends on."""
        return {
            **self._losses.state_dict(),
            "begins": list(self._begins),
            "bad_steps": self._bad_steps,
            "bad_since": self._bad_since,
            "overflows": self._overflows,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the history back, so that a restart decides the same."""
        self._forget()
        self._losses.load_state_dict(state)
        self._begins.extend(state.get("begins", ()))
        self._bad_steps = state.get("bad_steps", 0)
        self._bad_since = state.get("bad_since", 0)
        self._overflows = state.get("overflows", 0)
