"""Saves checkpoints by the commit protocol, and finds the one to go on from."""

import json
import logging
import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from scaletrain.checkpoint.commit import FileRecord, commit, list_files, make_durable, prune
from scaletrain.checkpoint.fragments import FragmentReader, write_fragments
from scaletrain.checkpoint.layout import CONFIG, STATE, folder_name, list_unfinished, partial_name
from scaletrain.checkpoint.verify import Level, newest_intact
from scaletrain.config.schema import CheckpointConfig
from scaletrain.engine.engine import Engine
from scaletrain.errors import CheckpointError
from scaletrain.monitors import names
from scaletrain.protocols import Callback, Run, TrainingState

logger = logging.getLogger(__name__)


class Checkpointing(Callback):
    """Saves every so many steps, and at the end."""

    def __init__(self, engine: Engine, config: CheckpointConfig, resolved_config: str) -> None:
        """Holds what a save needs.

        Args:
            engine: The model on all ranks.
            config: How often, and how many stay.
            resolved_config: The run's configuration as YAML, kept in each checkpoint.
        """
        self._engine = engine
        self._config = config
        self._resolved_config = resolved_config
        self._saved_at: int | None = None
        self._last_step_applied = True

    def on_start(self, run: Run) -> None:
        """Removes what a killed run left half written; a resumed step needs no new save."""
        self._saved_at = run.state.step
        if run.is_main:
            for folder in list_unfinished(run.folder / "checkpoints"):
                shutil.rmtree(folder)

    def on_step_end(self, run: Run, metrics: dict[str, float]) -> None:
        """Saves when it is time."""
        self._last_step_applied = math.isfinite(metrics[names.TRAIN_GRAD_NORM])
        is_requested, run.save_requested = run.save_requested, False
        if is_requested or (self._config.every_steps and run.state.step % self._config.every_steps == 0):
            self._save(run)

    def on_end(self, run: Run) -> None:
        """Saves what is not saved yet, also in a run that was asked to stop."""
        if self._saved_at != run.state.step:
            self._save(run)

    def _save(self, run: Run) -> None:
        start_s = time.perf_counter()
        checkpoints = run.folder / "checkpoints"
        partial, final = checkpoints / partial_name(run.state.step), checkpoints / folder_name(run.state.step)
        if run.is_main:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        dist.barrier()
        part = self._engine.save(partial)
        if part.file is not None:
            write_fragments(partial, dist.get_rank(), part.file, part.fragments)
        if run.is_main:
            (partial / CONFIG).write_text(self._resolved_config)
            (partial / STATE).write_text(json.dumps(_state_of(run, part.state), indent=1))
        records = _make_durable(partial)
        if run.is_main:
            commit(partial, final, records)
            # After a step that was not applied the weights may be ruined: no earlier checkpoint makes room for them.
            if self._last_step_applied:
                prune(checkpoints, self._config.keep_last, run.state.step)
        dist.barrier()
        self._saved_at = run.state.step
        seconds = run.save_s = time.perf_counter() - start_s
        run.record_event("save", folder=final.name, seconds=round(seconds, 3))
        if run.is_main:
            logger.info("saved %s in %.1f s", final.name, seconds)
        run.notify("on_save", final)


def _make_durable(partial: Path) -> dict[str, FileRecord]:
    """Forces all files to the disk, each rank its share of them; the records are the same on all ranks."""
    dist.barrier()  # all files of all ranks are closed
    listed: list[Any] = [list_files(partial) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(listed, src=0)
    shares: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(shares, make_durable(partial, listed[0][dist.get_rank() :: dist.get_world_size()]))
    return {name: record for share in shares for name, record in share.items()}


def _state_of(run: Run, engine_state: dict[str, Any]) -> dict[str, Any]:
    return {
        "format": 1,
        "training": run.state.to_json(),
        "engine": engine_state,
        "callbacks": {type(callback).__name__: callback.state_dict() for callback in run.callbacks},
    }


def resume(
    engine: Engine, checkpoints: Path, verify: Level, callbacks: Sequence[Callback], trusted: bool = False
) -> TrainingState:
    """Loads the newest intact checkpoint on all ranks, if there is one.

    Rank 0 chooses; all ranks load the same folder or none does.

    Args:
        engine: The model on all ranks.
        checkpoints: The run's ``checkpoints`` folder.
        verify: How much of a checkpoint is checked before it is trusted.
        callbacks: Get their states back.
        trusted: Whether objects of any class may be unpickled, which runs what the files say.

    Returns:
        Where the run goes on; step 0 without a checkpoint.

    Raises:
        CheckpointError: There are checkpoints, but none is intact; or the one chosen is of another model.
    """
    chosen: list[str | None] = [None, None]
    if dist.get_rank() == 0:
        chosen = _choose(checkpoints, verify)
    dist.broadcast_object_list(chosen, src=0)
    name, problem = chosen
    if problem is not None:
        raise CheckpointError(problem)
    if name is None:
        return TrainingState()
    folder = checkpoints / name
    state = json.loads((folder / STATE).read_text())
    engine.load(FragmentReader(folder, state["engine"]["zero_stage"], trusted), state["engine"])
    for callback in callbacks:
        callback.load_state_dict(state["callbacks"].get(type(callback).__name__, {}))
    return TrainingState.from_json(state["training"])


def _choose(checkpoints: Path, verify: Level) -> list[str | None]:
    choice = newest_intact(checkpoints, verify)
    for folder, reason in choice.refused:
        logger.warning("refused checkpoint %s: %s", folder.name, reason)
    if choice.folder is None and choice.refused:
        names = ", ".join(folder.name for folder, _ in choice.refused)
        problem = (
            f"{checkpoints} holds checkpoints ({names}), but none is intact. Restore one from a copy, or delete "
            "them to start from step 0."
        )
        return [None, problem]
    return [None if choice.folder is None else choice.folder.name, None]
