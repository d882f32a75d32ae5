"""Decides when checkpoints are saved, and what follows from how a save ended."""

import contextlib
import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scaletrain.checkpoint.layout import CONFIG, STATE, list_unfinished
from scaletrain.errors import StorageError
from scaletrain.monitors import names
from scaletrain.protocols import Callback, Run
from scaletrain.training.saving import Outcome, Saver
from scaletrain.training.tiers import Tier

logger = logging.getLogger(__name__)

_LAST_PAUSES_S = (5.0, 15.0)
"""Between the tries of a complete run to save: its last checkpoint is what it was for."""

_LONGEST_PAUSE_STEPS = 100
"""Between tries to save where there is no interval."""


class Checkpointing(Callback):
    """Saves every so many steps to each place, when a user asks for it, and at the end; never where none is to stay."""

    def __init__(self, saver: Saver, tiers: Sequence[Tier], resolved_config: str) -> None:
        """Holds what a save needs.

        Args:
            saver: Saves one checkpoint at a time.
            tiers: The places; the first is the shared one, which also gets what is saved at the end or on request.
            resolved_config: The run's configuration as YAML, kept in each checkpoint.
        """
        self._saver = saver
        self._tiers = tiers
        self._resolved_config = resolved_config
        self._saved_at = 0  # a run that has not begun needs no checkpoint
        self._last_step_applied = True
        self._validation: tuple[int, float] | None = None
        self._retry_at: dict[str, int] = {}
        self._retry_after_steps: dict[str, int] = {}

    def note_resumed(self, step: int, folder: Path | None, refused: Sequence[Path]) -> None:
        """Takes note of what the run goes on from.

        Args:
            step: Where it stands.
            folder: The checkpoint that was loaded; one in the shared place need not be saved there again.
            refused: Checkpoints that were not loaded; they go once a new one is complete in their place.
        """
        if folder is not None and folder.parent == self._tiers[0].checkpoints:
            self._saved_at = step
        self._saver.superseded = list(refused)

    @property
    def saved_at(self) -> int:
        """The last step that the shared place holds."""
        return self._saved_at

    def on_start(self, run: Run) -> None:
        """Removes what a killed run left half written."""
        for tier in self._tiers:
            if tier.is_committer:
                with contextlib.suppress(OSError):  # a save will meet it, and tell
                    for folder in list_unfinished(tier.checkpoints):
                        shutil.rmtree(folder, ignore_errors=True)

    def on_eval(self, run: Run, metrics: dict[str, float]) -> None:
        """Keeps the loss that these weights are judged by."""
        if names.EVAL_LOSS in metrics:
            self._validation = (run.state.step, metrics[names.EVAL_LOSS])

    def on_step_end(self, run: Run, metrics: dict[str, float]) -> None:
        """Looks after a save that is on its way, and begins one when it is time."""
        self._last_step_applied = math.isfinite(metrics[names.TRAIN_GRAD_NORM])
        self._conclude(run, self._saver.advance())
        due = [tier for tier in self._tiers if self._is_due(tier, run.state.step)]
        if run.save_requested and self._saves_none:
            logger.warning("asked to save, but checkpoint.keep_last = 0 saves nothing")
        elif run.save_requested:
            due.insert(0, self._tiers[0])
        run.save_requested = False
        if due:
            if self._saver.is_busy and run.is_main:
                logger.info("the save before is not complete yet: the training waits for it")
            self.settle(run)
            self._begin(run, due[0])  # the shared place comes first, and serves for the other too

    def on_end(self, run: Run) -> None:
        """Saves what is not saved yet, also in a run that was asked to stop.

        Raises:
            StorageError: There was no way to.
        """
        if self._saves_none:
            return
        self.settle(run)
        is_over = run.state.step >= run.max_steps or bool(run.complete_because)
        pauses = iter(_LAST_PAUSES_S if is_over else ())
        while self._saved_at != run.state.step:
            outcome = self._save(run)
            if outcome.problem is not None:
                pause_s = next(pauses, None)
                if pause_s is None:
                    raise StorageError(
                        f"step {run.state.step} cannot be saved: {outcome.problem}. Make room or permission there; "
                        "the same command goes on from the last checkpoint."
                    )
                time.sleep(pause_s)

    def settle(self, run: Run) -> None:
        """Waits for a save that is on its way; every rank calls it."""
        self._conclude(run, self._saver.advance(waits=True))

    @property
    def _saves_none(self) -> bool:
        return self._tiers[0].retention.keep_last == 0

    def _is_due(self, tier: Tier, step: int) -> bool:
        return self._retry_at.get(tier.name) == step or (tier.every_steps > 0 and step % tier.every_steps == 0)

    def _begin(self, run: Run, tier: Tier) -> None:
        self._conclude(run, self._saver.begin(tier, run.state.step, self._texts_of(run), self._last_step_applied))
        if not self._saver.in_background:
            self.settle(run)

    def _save(self, run: Run) -> Outcome:
        begun = self._saver.begin(self._tiers[0], run.state.step, self._texts_of(run), self._last_step_applied)
        outcome = begun or self._saver.advance(waits=True)
        assert outcome is not None  # it was waited for
        self._conclude(run, outcome)
        return outcome

    def _texts_of(self, run: Run) -> Callable[[dict[str, Any], str], Mapping[str, str]]:
        """The state as it is now: when the files are written, the run has gone on."""
        content = {
            "format": 1,
            "attempt": run.attempt,
            "training": run.state.to_json(),
            "callbacks": {type(callback).__name__: callback.state_dict() for callback in run.callbacks},
            "validation_loss": self._validation_loss(run.state.step),
        }
        return lambda engine, save_id: {
            CONFIG: self._resolved_config,
            STATE: json.dumps({**content, "save_id": save_id, "engine": engine}, indent=1),
        }

    def _validation_loss(self, step: int) -> float | None:
        if self._validation is None or self._validation[0] != step or not math.isfinite(self._validation[1]):
            return None
        return self._validation[1]

    def _conclude(self, run: Run, outcome: Outcome | None) -> None:
        if outcome is None:
            return
        tier = outcome.tier
        if outcome.problem is not None:
            self._put_off(run, outcome)
            return
        self._retry_at.pop(tier.name, None)
        self._retry_after_steps.pop(tier.name, None)
        if tier is self._tiers[0]:
            self._saved_at = outcome.step
            run.save_s = outcome.seconds
        run.record_event(
            "save",
            step=outcome.step,
            folder=outcome.folder.name,
            tier=tier.name,
            bytes=outcome.size_bytes,
            seconds=round(outcome.seconds, 3),
            stall_s=round(outcome.stall_s, 3),
        )
        if run.is_main:
            told = (outcome.folder.name, outcome.size_bytes / 1e9, outcome.seconds, outcome.stall_s)
            logger.info("saved %s: %.3g GB in %.1f s, training stood still for %.2f s", *told)
        run.notify("on_save", outcome.folder)

    def _put_off(self, run: Run, outcome: Outcome) -> None:
        """The run goes on without this checkpoint and tries again: soon at first, then less and less often."""
        tier = outcome.tier
        longest = tier.every_steps or _LONGEST_PAUSE_STEPS
        after = min(self._retry_after_steps.get(tier.name, max(1, longest // 10)), longest)
        self._retry_at[tier.name] = run.state.step + after
        self._retry_after_steps[tier.name] = 2 * after
        run.record_event(
            "save_failed",
            step=outcome.step,
            folder=outcome.folder.name,
            tier=tier.name,
            reason=outcome.problem,
            stall_s=round(outcome.stall_s, 3),
        )
        if run.is_main:
            logger.error(
                "step %d is NOT saved to %s: %s. Earlier checkpoints stay; tries again after step %d, if there is one.",
                outcome.step,
                tier.checkpoints,
                outcome.problem,
                self._retry_at[tier.name],
            )
