"""Finds the checkpoint that a run goes on from, and loads it on all ranks."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from scaletrain.checkpoint.fragments import FragmentReader
from scaletrain.checkpoint.layout import COMPLETE, STATE, folder_name, list_checkpoints, step_of
from scaletrain.checkpoint.verify import Level, find_damage
from scaletrain.engine.engine import Engine
from scaletrain.errors import CheckpointError, ConfigError, StorageError
from scaletrain.launch.hang.heartbeat import Phase
from scaletrain.protocols import Callback, Run, TrainingState
from scaletrain.ranks import Ranks
from scaletrain.training.init_source import InitSource
from scaletrain.training.init_weights import FittedWeights, fit_weights
from scaletrain.training.lineage import Lineage
from scaletrain.training.tiers import Tier

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resumed:
    """Where a run goes on.

    Attributes:
        state: Step 0 without a checkpoint.
        folder: The checkpoint that was loaded.
        refused: Newer ones that were not, each with the reason.
        source: Another run's checkpoint whose weights it begins with.
        fit: What of these weights is not as it was there, in words.
    """

    state: TrainingState
    folder: Path | None
    refused: tuple[tuple[Path, str], ...]
    source: InitSource | None = None
    fit: tuple[str, ...] = ()

    def record(self, run: Run, **fields: Any) -> None:
        """Writes into the run's diary that it starts or goes on, and from what.

        Args:
            run: The run.
            **fields: What else belongs to its start.
        """
        if self.folder is None:
            run.record_event("start", **fields)
            if self.source is not None:
                told = {"fit": list(self.fit)} if self.fit else {}
                run.record_event("init", folder=str(self.source.folder), source_step=self.source.step, **told)
        else:
            run.record_event("resume", folder=str(self.folder), **fields)
        self.record_refused(run)

    def record_refused(self, run: Run) -> None:
        """Writes into the run's diary what was not loaded."""
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
    lineage: Lineage,
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
        lineage: How the run has come to where it is; the same on all ranks.
        trusted: Whether objects of any class may be unpickled, which runs what the files say.
        newest_step: The newest that will do, for a run that goes back; then there must be one.

    Returns:
        Where the run goes on.

    Raises:
        CheckpointError: There are checkpoints, but none can be used; or there were some.
        StorageError: It cannot be told which there are.
    """
    engine.heartbeat.enter(Phase.START)
    refused: list[tuple[Path, str]] = []
    for candidate in _candidates(tiers, ranks, newest_step):
        problem, content = _try(engine, candidate, verify, trusted, lineage)
        if problem is None:
            for callback in callbacks:
                callback.load_state_dict(content["callbacks"].get(type(callback).__name__, {}))
            return Resumed(TrainingState.from_json(content["training"]), candidate.folder, tuple(refused))
        refused.append((candidate.folder, problem))
        if ranks.is_main:
            logger.warning("refused checkpoint %s: %s", candidate.folder, problem)
    _refuse_to_start_anew(tiers[0], refused, ranks, lineage)
    if newest_step is not None:
        raise CheckpointError(f"there is no checkpoint of step {newest_step} or before. Start the run anew.")
    return Resumed(TrainingState(), None, tuple(refused))


def begin_with(
    engine: Engine,
    find: Callable[[], Sequence[InitSource]],
    resumed: Resumed,
    verify: Level,
    ranks: Ranks,
    trusted: bool = False,
) -> Resumed:
    """Loads the weights, and nothing else, of another run's checkpoint where a run begins; every rank calls it.

    Args:
        engine: The model on all ranks.
        find: Gives the checkpoints to try, the best first; none where the run begins with the weights that its model
            was made with. Called on rank 0.
        resumed: What ``resume`` returned.
        verify: How much is checked before.
        ranks: The place of this process.
        trusted: Whether objects of any class may be unpickled.

    Returns:
        The same, with what it begins with.

    Raises:
        ConfigError: There is none that fits; on all ranks.
        CheckpointError: All that fit are damaged; on all ranks.
    """
    if resumed.folder is not None:
        return resumed
    found: list[Any] = [(), ""]
    if ranks.is_main:
        try:
            found[0] = tuple(find())
        except ConfigError as error:
            found[1] = str(error)
    dist.broadcast_object_list(found, src=0)
    sources, problem = found
    if problem:
        raise ConfigError(problem)
    refused: list[tuple[Path, str]] = []
    for source in sources:
        damage, fit = _load_weights(engine, source.folder, verify, ranks, trusted)
        if not damage:
            if ranks.is_main:
                logger.info("begins with the weights of %s%s", source.folder, "".join(f"; {line}" for line in fit))
            return replace(resumed, source=source, refused=(*resumed.refused, *refused), fit=fit)
        refused.append((source.folder, damage))
        if ranks.is_main:
            logger.warning("init: refused checkpoint %s: %s", source.folder, damage)
    if refused:
        told = "".join(f"\n  {folder}: {reason}" for folder, reason in refused)
        raise CheckpointError(f"init: no checkpoint can be loaded:{told}\nGive another --init.")
    return resumed


def _load_weights(
    engine: Engine, folder: Path, verify: Level, ranks: Ranks, trusted: bool
) -> tuple[str, tuple[str, ...]]:
    """Loads the weights of a checkpoint, or says why not, and what does not come from it; the same on all ranks."""
    damage = find_damage(folder, verify, ranks.rank, ranks.world_size)
    state: dict[str, Any] = {}
    live = engine.shapes
    if damage is None:
        try:
            state = json.loads((folder / STATE).read_text())["engine"]
            fit = fit_weights(state, live)
            reader = FragmentReader(folder, state["zero_stage"], trusted)
        except (OSError, ValueError, KeyError, TypeError, CheckpointError) as error:
            damage = str(error)
    if problems := engine.collect_texts(damage or ""):
        return "; ".join(problems), ()
    # Of an optimizer that has not stepped there are no moments, and its counters begin at zero.
    begun = {"moments": [], "applied_steps": 0, "global_steps": 0, "loss_scale": {}, "shapes": live}
    try:
        engine.load(FittedWeights(reader, fit, live), state | begun, initial=fit.initial)
    except CheckpointError as error:  # on all ranks
        return str(error), ()
    return "", tuple(fit.lines())


def _refuse_to_start_anew(shared: Tier, refused: Sequence[tuple[Path, str]], ranks: Ranks, lineage: Lineage) -> None:
    """Lets a run begin at step 0 only where it has not saved yet, but to disks of nodes that may be others now.

    Raises:
        CheckpointError: What it has saved cannot be used, or is not there; on all ranks.
    """
    problems = [f"{folder}: {reason}" for folder, reason in refused if folder.parent == shared.checkpoints]
    incomplete: list[Any] = [[]]
    if ranks.is_main and shared.checkpoints.is_dir():
        numbered = [folder for folder in shared.checkpoints.iterdir() if step_of(folder) is not None]
        incomplete = [[f"{folder}: {COMPLETE} is missing" for folder in numbered if not (folder / COMPLETE).exists()]]
    dist.broadcast_object_list(incomplete, src=0)
    problems += incomplete[0]
    if problems:
        told = "".join(f"\n  {problem}" for problem in problems)
        raise CheckpointError(
            f"{shared.checkpoints} holds checkpoints, but none can be loaded:{told}\nRestore one from a copy, or give "
            "another --run_dir to start from step 0."
        )
    if lineage.last_saved is not None:
        raise CheckpointError(
            f"this run has saved step {lineage.last_saved}, but {shared.checkpoints} holds no checkpoint. Mount or "
            "restore it, or give another --run_dir to start from step 0."
        )


def newest_intact(engine: Engine, tiers: Sequence[Tier], verify: Level, ranks: Ranks, newest_step: int) -> int | None:
    """The step of the newest checkpoint to go back to, as far as sizes tell; every rank calls it.

    Args:
        engine: Lets the ranks tell each other.
        tiers: The places for checkpoints, to which nothing is being saved.
        verify: How much is checked before a checkpoint is loaded; here never more than sizes.
        ranks: The place of this process.
        newest_step: The newest step that will do.

    Returns:
        Its step, the same on all ranks; None where there is none.
    """
    level: Level = "off" if verify == "off" else "sizes"
    for candidate in _candidates(tiers, ranks, newest_step):
        damage = find_damage(candidate.folder, level, candidate.part, candidate.parts)
        if not engine.collect_texts(damage or ""):
            return candidate.step
    return None


def _candidates(tiers: Sequence[Tier], ranks: Ranks, newest_step: int | None) -> list[_Candidate]:
    """The checkpoints to try, the newest first; of one step the local one first, since it is near."""
    listed: list[Any] = [None] * ranks.world_size
    dist.all_gather_object(listed, [_steps(tier) if _lists(tier, ranks) else ([], "") for tier in tiers])
    candidates = []
    for position, tier in reversed(list(enumerate(tiers))):
        if tier.name == "shared":
            found, problem = listed[0][position]
            if problem:
                raise StorageError(f"checkpoints in {tier.checkpoints} cannot be listed: {problem}. Mend the storage.")
            steps, part, parts = set(found), ranks.rank, ranks.world_size
        else:
            steps = set.intersection(*(set(of_rank[position][0]) for of_rank in listed))
            part, parts = ranks.local_rank, ranks.local_world_size
        steps = {step for step in steps if newest_step is None or step <= newest_step}
        candidates += [_Candidate(step, tier.checkpoints / folder_name(step), part, parts) for step in steps]
    return sorted(candidates, key=lambda candidate: candidate.step, reverse=True)


def _lists(tier: Tier, ranks: Ranks) -> bool:
    return tier.name == "local" or ranks.is_main


def _steps(tier: Tier) -> tuple[list[int], str]:
    """The steps in a place, or why they cannot be told; raised on one rank alone it would leave the others waiting."""
    try:
        return [step_of(folder) or 0 for folder in list_checkpoints(tier.checkpoints)], ""
    except OSError as error:
        logger.warning("checkpoints in %s cannot be listed: %s", tier.checkpoints, error.strerror)
        return [], str(error.strerror)


def _try(
    engine: Engine, candidate: _Candidate, verify: Level, trusted: bool, lineage: Lineage
) -> tuple[str | None, dict[str, Any]]:
    """Loads a checkpoint, or says why not; the same on all ranks."""
    folder = candidate.folder
    damage = find_damage(folder, verify, candidate.part, candidate.parts)
    content: dict[str, Any] = {}
    if damage is None:
        try:
            content = json.loads((folder / STATE).read_text())
            damage = _find_mismatch(content, candidate.step, lineage)
            reader = FragmentReader(folder, content["engine"]["zero_stage"], trusted)
        except (OSError, ValueError, KeyError, TypeError) as error:
            damage = f"{STATE} cannot be read: {error}"
        except CheckpointError as error:
            damage = str(error)
    if problems := engine.collect_texts(damage or ""):
        return "; ".join(problems), {}
    if len(engine.collect_texts(str(content.get("save_id", "")))) > 1:
        return "the nodes hold parts of different saves", {}
    try:
        engine.load(reader, content["engine"])
    except CheckpointError as error:  # on all ranks
        return str(error), {}
    return None, content


def _find_mismatch(content: dict[str, Any], step: int, lineage: Lineage) -> str | None:
    held = TrainingState.from_json(content["training"]).step
    return f"it holds step {held}" if held != step else lineage.find_break(content)
