"""Finds the checkpoint that a run goes on from, and loads it on all ranks."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from scaletrain.checkpoint.fragments import FragmentReader
from scaletrain.checkpoint.layout import STATE, folder_name, list_checkpoints, step_of
from scaletrain.checkpoint.verify import Level, find_damage
from scaletrain.engine.engine import Engine
from scaletrain.errors import CheckpointError
from scaletrain.protocols import Callback, Run, TrainingState
from scaletrain.ranks import Ranks
from scaletrain.training.saving import Tier

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resumed:
    """Where a run goes on.

    Attributes:
        state: Step 0 without a checkpoint.
        folder: The checkpoint that was loaded.
        refused: Newer ones that were not, each with the reason.
    """

    state: TrainingState
    folder: Path | None
    refused: tuple[tuple[Path, str], ...]

    def record(self, run: Run, **fields: Any) -> None:
        """Writes into the run's diary that it starts or goes on, and what was not loaded.

        Args:
            run: The run.
            **fields: What else belongs to its start.
        """
        if self.folder is None:
            run.record_event("start", **fields)
        else:
            run.record_event("resume", folder=str(self.folder), **fields)
        for folder, reason in self.refused:
            run.record_event("refused_checkpoint", folder=str(folder), reason=reason)


@dataclass(frozen=True)
class _Candidate:
    step: int
    folder: Path
    part: int
    """Which part of its files this rank checks, of ``parts``."""
    parts: int


def resume(
    engine: Engine,
    tiers: Sequence[Tier],
    verify: Level,
    callbacks: Sequence[Callback],
    ranks: Ranks,
    trusted: bool = False,
    newest_step: int | None = None,
) -> Resumed:
    """Loads the newest intact checkpoint on all ranks, if there is one; every rank calls it.

    All ranks try the same one. What one of them finds wrong with it makes all of them go to the next.

    Args:
        engine: The model on all ranks.
        tiers: The places for checkpoints. Of a shared one rank 0 says what there is; in a local one a checkpoint counts
            that is complete on all nodes.
        verify: How much of a checkpoint is checked before it is trusted; the ranks share the reading.
        callbacks: Get their states back.
        ranks: The place of this process.
        trusted: Whether objects of any class may be unpickled, which runs what the files say.
        newest_step: The newest that will do, for a run that goes back; then there must be one.

    Returns:
        Where the run goes on.

    Raises:
        CheckpointError: There are checkpoints, but none can be used.
    """
    refused: list[tuple[Path, str]] = []
    for candidate in _candidates(tiers, ranks, newest_step):
        problem, content = _try(engine, candidate, verify, trusted)
        if problem is None:
            for callback in callbacks:
                callback.load_state_dict(content["callbacks"].get(type(callback).__name__, {}))
            return Resumed(TrainingState.from_json(content["training"]), candidate.folder, tuple(refused))
        refused.append((candidate.folder, problem))
        if ranks.is_main:
            logger.warning("refused checkpoint %s: %s", candidate.folder, problem)
    if refused:
        told = "".join(f"\n  {folder}: {reason}" for folder, reason in refused)
        raise CheckpointError(
            f"{tiers[0].checkpoints} holds checkpoints, but none is intact:{told}\nRestore one from a copy, or delete "
            "them to start from step 0."
        )
    if newest_step is not None:
        raise CheckpointError(f"there is no checkpoint of step {newest_step} or before. Start the run anew.")
    return Resumed(TrainingState(), None, ())


def can_go_back(engine: Engine, tiers: Sequence[Tier], verify: Level, ranks: Ranks, newest_step: int) -> bool:
    """Whether there is a checkpoint to go back to, as far as sizes tell; every rank calls it.

    Args:
        engine: Lets the ranks tell each other.
        tiers: The places for checkpoints, to which nothing is being saved.
        verify: How much is checked before a checkpoint is loaded; here never more than sizes.
        ranks: The place of this process.
        newest_step: The newest step that will do.

    Returns:
        The same on all ranks.
    """
    level: Level = "off" if verify == "off" else "sizes"
    for candidate in _candidates(tiers, ranks, newest_step):
        damage = find_damage(candidate.folder, level, candidate.part, candidate.parts)
        if not engine.collect_texts(damage or ""):
            return True
    return False


def _candidates(tiers: Sequence[Tier], ranks: Ranks, newest_step: int | None) -> list[_Candidate]:
    """The checkpoints to try, the newest first; of one step the local one first, since it is near."""
    listed: list[Any] = [None] * ranks.world_size
    dist.all_gather_object(listed, [_steps(tier.checkpoints) for tier in tiers])
    candidates = []
    for position, tier in reversed(list(enumerate(tiers))):
        if tier.name == "shared":
            steps, part, parts = set(listed[0][position]), ranks.rank, ranks.world_size
        else:
            steps = set.intersection(*(set(of_rank[position]) for of_rank in listed))
            part, parts = ranks.local_rank, ranks.local_world_size
        steps = {step for step in steps if newest_step is None or step <= newest_step}
        candidates += [_Candidate(step, tier.checkpoints / folder_name(step), part, parts) for step in steps]
    return sorted(candidates, key=lambda candidate: candidate.step, reverse=True)


def _steps(checkpoints: Path) -> list[int]:
    try:
        return [step_of(folder) or 0 for folder in list_checkpoints(checkpoints)]
    except OSError as error:  # raised on one rank alone it would leave the others waiting
        logger.warning("checkpoints in %s cannot be listed: %s", checkpoints, error.strerror)
        return []


def _try(engine: Engine, candidate: _Candidate, verify: Level, trusted: bool) -> tuple[str | None, dict[str, Any]]:
    """Loads a checkpoint, or says why not; the same on all ranks."""
    folder = candidate.folder
    damage = find_damage(folder, verify, candidate.part, candidate.parts)
    content: dict[str, Any] = {}
    if damage is None:
        try:
            content = json.loads((folder / STATE).read_text())
            TrainingState.from_json(content["training"])
            reader = FragmentReader(folder, content["engine"]["zero_stage"], trusted)
        except (OSError, ValueError, KeyError, TypeError) as error:
            damage = f"{STATE} cannot be read: {error}"
        except CheckpointError as error:
            damage = str(error)
    if problems := engine.collect_texts(damage or ""):
        return "; ".join(problems), {}
    try:
        engine.load(reader, content["engine"])
    except CheckpointError as error:  # on all ranks
        return str(error), {}
    return None, content
