"""Decides from the results of the steps whether the run goes on, goes back before a mishap, or gives up."""

import logging
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from scaletrain.config.batch_plan import BatchSchedule
from scaletrain.config.schema import StabilityConfig
from scaletrain.data.mixture import Phase
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
        borders: Sequence[int],
        step_back: Callable[[Run, int], int | None],
        documents_of: Callable[[SequenceRange], Sequence[str]],
    ) -> None:
        """Begins without any history.

        Args:
            config: What counts as a mishap.
            borders: Sequences at which other losses begin, ascending; see ``loss_borders``.
            step_back: The newest step of a checkpoint, of a given step or before, that the run can go back to; None
                where there is none. The same on all ranks, which all call it.
            documents_of: Names some documents of a range; the same on all ranks, which all call it.
        """
        self._config = config
        self._borders = (0, *borders)
        self._step_back = step_back
        self._documents_of = documents_of
        # Steps that are still being judged are no part of what they are judged by.
        self._losses = LossStability(config.window_steps, max(config.spike_steps, config.window_steps // 8))
        self._forget()
        self._sequences = 0

    def _forget(self) -> None:
        self._border = 0
        # Where the last steps began, so that those right before a spike can be left out with it.
        self._begins: deque[int] = deque(maxlen=self._config.skip_steps + 1)
        # High and bad steps in a row. "Since" is where what is to be left out begins, "from" the step before that.
        self._high_steps = self._high_since = self._high_from = 0
        self._bad_steps = self._bad_since = self._bad_from = 0
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
            self._judge_loss(run, result.loss)
            return
        run.record_event("skipped_step", grad_norm=str(result.grad_norm), loss=str(result.loss))
        logger.warning("step %d was not applied: gradient norm %s", run.state.step, result.grad_norm)
        if result.overflow:
            self._bad_steps = 0
            self._overflows += 1
            if self._overflows >= MOST_OVERFLOWS:
                raise DivergenceError(
                    f"{self._overflows} steps in a row had no finite gradient at any loss scale, the last with loss "
                    f"{result.loss}: the training has diverged. Set train.precision bf16, or lower optim.lr and go on "
                    "from a checkpoint before it: delete the later ones in the run's folder checkpoints/."
                )
            return
        self._overflows = 0
        if self._bad_steps == 0:
            self._bad_since, self._bad_from = began, run.state.step - 1
        self._bad_steps += 1
        if self._bad_steps >= self._config.bad_steps:
            self._end_bad_steps(run, result)

    def _judge_loss(self, run: Run, loss: float) -> None:
        border = self._borders[bisect_right(self._borders, run.state.sequences - 1) - 1]
        if border != self._border:
            self._forget_losses()
            self._border = border
        score, threshold = self._losses.observe(loss), self._config.spike_zscore
        if score is None or not 0 < threshold <= score:
            self._high_steps = 0
            return
        if self._high_steps == 0:
            self._high_since, self._high_from = self._begins[0], run.state.step - len(self._begins)
        self._high_steps += 1
        if self._high_steps >= self._config.spike_steps:
            self._end_spike(run, loss, score)

    def _end_spike(self, run: Run, loss: float, score: float) -> None:
        reason = f"the loss of step {run.state.step} is {loss:.6g}, {score:.1f} deviations above those before it"
        if self._high_steps > 1:
            reason += f", the last of {self._high_steps} steps in a row above {self._config.spike_zscore:g}"
        self._refuse_too_many(run, self._high_since, self._high_from, reason)
        step = self._step_back(run, self._high_from)
        if step is not None:
            raise RollBack(SequenceRange(self._high_since, run.state.sequences), reason, step)
        run.record_event("loss_spike", loss=loss, zscore=score)
        logger.warning(
            "%s; the run goes on, as it has no intact checkpoint of step %d or before, and judges the loss anew",
            reason,
            self._high_from,
        )
        self._forget_losses()

    def _forget_losses(self) -> None:
        self._losses.forget()
        self._high_steps = 0

    def _end_bad_steps(self, run: Run, result: StepResult) -> None:
        ranks = ", ".join(f"rank {fault.rank} ({fault.host})" for fault in result.faults)
        whose = f"in the last one first on {ranks}" if ranks else "in the last one on no rank alone"
        reason = f"{self._bad_steps} steps in a row had no finite loss or gradient, computed twice each, {whose}"
        self._refuse_too_many(run, self._bad_since, self._bad_from, reason)
        step = self._step_back(run, self._bad_from)
        if step is not None:
            raise RollBack(SequenceRange(self._bad_since, run.state.sequences), reason, step)
        raise DivergenceError(
            f"{reason}: the training has diverged, and there is no intact checkpoint of step {self._bad_from} or "
            "before to go back to. Lower optim.lr or set optim.grad_clip, and start anew."
        )

    def _refuse_too_many(self, run: Run, first_sequence: int, step_before: int, reason: str) -> None:
        gone_back = len(run.state.skipped_sequences)
        if gone_back < self._config.max_rollbacks:
            return
        documents = ", ".join(self._documents_of(SequenceRange(first_sequence, run.state.sequences)))
        first, last = step_before + 1, run.state.step
        steps = f"Step {last} holds" if first == last else f"Steps {first} to {last} hold"
        raise DivergenceError(
            f"{reason}. The run has gone back {gone_back} times before, and stability.max_rollbacks allows "
            f"{self._config.max_rollbacks}. {steps} sequences {first_sequence} to {run.state.sequences - 1}, with "
            f"these documents among others: {documents}. Look at them, lower optim.lr or set optim.grad_clip; a higher "
            "stability.max_rollbacks lets it go on as before. Where such losses are no mishap, raise "
            "stability.spike_zscore."
        )

    def state_dict(self) -> dict[str, Any]:
        """The history that the next decision depends on."""
        return {
            **self._losses.state_dict(),
            "border": self._border,
            "begins": list(self._begins),
            "high": [self._high_steps, self._high_since, self._high_from],
            "bad": [self._bad_steps, self._bad_since, self._bad_from],
            "overflows": self._overflows,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the history back, so that a restart decides the same."""
        self._forget()
        self._losses.load_state_dict(state)
        self._border = state.get("border", 0)
        self._begins.extend(state.get("begins", ()))
        self._high_steps, self._high_since, self._high_from = state.get("high", (0, 0, 0))
        self._bad_steps, self._bad_since, self._bad_from = state.get("bad", (0, 0, 0))
        self._overflows = state.get("overflows", 0)


def loss_borders(phases: Sequence[Phase], num_lanes: int, schedule: BatchSchedule) -> list[int]:
    """Where the losses become others, so that those before say nothing about those behind.

    Args:
        phases: The weights of the sources over time.
        num_lanes: Lanes of the data's order.
        schedule: The batch size over time. Only where it falls are there other losses: they scatter more.

    Returns:
        The first sequences of other mixtures and of smaller batches, ascending.
    """
    mixtures = [phase.until_place * num_lanes for phase in phases if phase.until_place]
    sizes = [size for _, size in schedule.phases] + [schedule.last]
    smaller = [
        until
        for (until, _), (size, following) in zip(schedule.phases, pairwise(sizes), strict=True)
        if following < size
    ]
    return sorted({*mixtures, *smaller})
