"""Which checkpoint can be trusted."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from scaletrain.checkpoint.layout import COMPLETE, FILES, list_checkpoints
from scaletrain.checkpoint.records import FileRecord, checksum
from scaletrain.checkpoint.retention import validation_loss
from scaletrain.errors import CheckpointError
from scaletrain.protocols import Step

Level = Literal["full", "sizes", "off"]


@dataclass(frozen=True)
class Choice:
    """The checkpoint to load.

    Attributes:
        folder: The newest intact checkpoint, or None when there is none.
        refused: Newer ones that were refused, each with the reason.
    """

    folder: Path | None
    refused: tuple[tuple[Path, str], ...]


def find_damage(folder: Path, level: Level, part: int = 0, parts: int = 1) -> str | None:
    """Compares a checkpoint's files with its files.json.

    Args:
        folder: A folder that holds COMPLETE.
        level: ``full`` reads every byte, ``sizes`` looks at the sizes only, ``off`` at nothing.
        part: Which part of the files is read, where several processes share the reading.
        parts: How many processes do.

    Returns:
        What is wrong, or None.
    """
    if level == "off":
        return None
    try:
        if (folder / COMPLETE).read_text().strip() != checksum(folder / FILES).xxh3_128:
            return f"{FILES} is not the one that {COMPLETE} was written for"
        records = {
            name: FileRecord(**record) for name, record in json.loads((folder / FILES).read_text())["files"].items()
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{FILES} cannot be read: {error}"
    for position, (name, record) in enumerate(sorted(records.items())):
        try:
            size = (folder / name).stat().st_size
            if size != record.size:
                return f"{name} has {size} bytes instead of {record.size}"
            if level == "full" and position % parts == part and checksum(folder / name) != record:
                return f"{name} has another checksum than when it was saved"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return None


def newest_intact(checkpoints: Path, level: Level) -> Choice:
    """Finds the checkpoint that a run goes on from.

    Args:
        checkpoints: The run's ``checkpoints`` folder.
        level: How much of each is checked.

    Returns:
        The newest that is intact, and those passed over.
    """
    refused: list[tuple[Path, str]] = []
    for folder in list_checkpoints(checkpoints):
        damage = find_damage(folder, level)
        if damage is None:
            return Choice(folder, tuple(refused))
        refused.append((folder, damage))
    return Choice(None, tuple(refused))


def require_checkpoint(checkpoints: Path, step: Step | None, level: Level) -> Path:
    """Finds a checkpoint that must be there.

    Args:
        checkpoints: The run's ``checkpoints`` folder.
        step: A certain one, or None for the newest intact one.
        level: How much is checked.

    Returns:
        The folder.

    Raises:
        CheckpointError: There is none, or the one asked for is damaged.
    """
    if step is None:
        choice = newest_intact(checkpoints, level)
        if choice.folder is not None:
            return choice.folder
        reasons = "".join(f"; {folder.name}: {reason}" for folder, reason in choice.refused)
        raise CheckpointError(
            f"{checkpoints} holds no intact checkpoint{reasons}. Train the run first, or name another."
        )
    if step == "best":
        return _best(checkpoints, level)
    by_step = {folder.name: folder for folder in list_checkpoints(checkpoints)}
    for name, folder in by_step.items():
        if name.endswith(f"_{step:08d}"):
            damage = find_damage(folder, level)
            if damage is not None:
                raise CheckpointError(f"{folder}: {damage}. Choose another step: {', '.join(by_step)}.")
            return folder
    have = ", ".join(by_step) or "none"
    raise CheckpointError(f"step {step} has no checkpoint in {checkpoints}; there are: {have}.")


def _best(checkpoints: Path, level: Level) -> Path:
    judged = [folder for folder in list_checkpoints(checkpoints) if validation_loss(folder) < math.inf]
    if not judged:
        raise CheckpointError(
            f"No checkpoint in {checkpoints} was saved at a step that was evaluated, so that none is the best. Name a "
            "step, or train with --eval.patience or --checkpoint.keep_best."
        )
    best = min(judged, key=validation_loss)
    if damage := find_damage(best, level):
        raise CheckpointError(f"{best}, the one with the lowest validation loss: {damage}. Choose another step.")
    return best
