"""Which checkpoints stay when newer ones are complete."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from scaletrain.checkpoint.commit import discard
from scaletrain.checkpoint.layout import STATE, list_checkpoints, step_of


@dataclass(frozen=True)
class Retention:
    """What stays; a checkpoint that any of the rules keeps is kept.

    Attributes:
        keep_last: Number of the newest ones.
        keep_every_steps: Those at multiples of it stay for ever; 0 for none.
        keep_best: Whether the one with the lowest validation loss stays.
    """

    keep_last: int
    keep_every_steps: int = 0
    keep_best: bool = False


def prune(checkpoints: Path, retention: Retention, current_step: int) -> list[Path]:
    """Deletes the checkpoints that no rule keeps. Only numbered folders that are complete are ever deleted.

    One of a later step than the run's own was refused when the run went on from an older one. It does not count
    among those that stay, or it would take the place of an intact one.

    Args:
        checkpoints: The folder that holds them.
        retention: The rules.
        current_step: Where the run stands.

    Returns:
        The folders that were deleted.

    Raises:
        OSError: The file system refused.
    """
    own = [folder for folder in list_checkpoints(checkpoints) if (step_of(folder) or 0) <= current_step]
    every = retention.keep_every_steps
    old = [folder for folder in own[retention.keep_last :] if not every or (step_of(folder) or 0) % every]
    if retention.keep_best and old:
        best = min(own, key=validation_loss)
        old = [folder for folder in old if folder != best]
    for folder in old:
        discard(folder)
    return old


def validation_loss(checkpoint: Path) -> float:
    """The validation loss of a checkpoint's own weights, in nats; infinite where it was not measured."""
    try:
        loss = float(json.loads((checkpoint / STATE).read_text())["validation_loss"])
    except (OSError, ValueError, KeyError, TypeError):
        return math.inf
    return loss if math.isfinite(loss) else math.inf
