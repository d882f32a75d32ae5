"""How large a checkpoint is, and whether those that are kept fit where they go."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from scaletrain.config.schema import CheckpointConfig, ModelConfig
from scaletrain.config.tune_rules import TrainedPart
from scaletrain.planning.parameters import count_parameters
from scaletrain.planning.report import format_bytes

LOCAL_KEEP_LAST = 2
"""Checkpoints that stay on a node's own disk: the newest may be complete on some of the nodes only."""

# What stands beside the numbers: torch's archive keeps a name, a header and padding for each tensor, and each rank
# describes in JSON what its file holds. Measured, and rounded up.
_RANK_BYTES = 2**13
_TENSOR_BYTES = 2**9
_WHOLE_TENSOR_BYTES = 3 * 2**9  # stage 0 stores each weight, its two moments and its count of steps apart


@dataclass(frozen=True)
class Room:
    """Space for checkpoints.

    Attributes:
        free_bytes: free on their file system.
        present_bytes: checkpoints that stand there already: they are among those that stay, or make room.
    """

    free_bytes: int
    present_bytes: int


@dataclass(frozen=True)
class Kept:
    """Checkpoints that stand in a place at the end of a run, at most.

    Attributes:
        newest: the newest ones.
        multiples: those that stay for ever, at multiples of ``every_steps``.
        every_steps: ``checkpoint.keep_every_steps``.
        best: 1 where the best one stays, or 0.
    """

    newest: int
    multiples: int = 0
    every_steps: int = 0
    best: int = 0

    @staticmethod
    def of(checkpoint: CheckpointConfig, max_steps: int, keeps_best: bool = False) -> "Kept":
        """Count those of a whole run.

        Args:
            checkpoint: when the run saves, and what it keeps.
            max_steps: its length.
            keeps_best: whether the best one stays, whatever ``checkpoint`` says.
        """
        every = checkpoint.keep_every_steps
        # A save falls on a multiple where the two intervals meet, and at the end.
        met = math.lcm(checkpoint.every_steps or max_steps, every)
        multiples = max_steps // met + (max_steps % every == 0 and max_steps % met > 0) if every else 0
        return Kept(checkpoint.keep_last, multiples, every, int(checkpoint.keep_best or keeps_best))

    @property
    def total(self) -> int:
        """All of them."""
        return self.newest + self.multiples + self.best

    def __str__(self) -> str:
        """In words."""
        parts = [str(self.newest)]
        if self.multiples:
            parts.append(f"{self.multiples} at multiples of {self.every_steps}")
        if self.best:
            parts.append("the best")
        return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]


def checkpoint_bytes(
    model: ModelConfig,
    precision: Literal["fp32", "bf16", "fp16"],
    zero_stage: int,
    world_size: int,
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw",
    ranks_there: int | None = None,
    averages: bool = False,
    part: TrainedPart | None = None,
) -> int:
    """Count the bytes of one checkpoint's files, of all ranks together or of those of a node in its own folder.

    Stage 0 stores fp32 weights once, whatever the precision; they are its masters. Stages 1 and 2 store the weights of
    the forward pass in the run's precision, and fp32 masters beside them, in fp32 too. Stage 3 stores masters only.
    What is frozen has neither masters nor moments: there are its weights of the forward pass in every stage.

    Args:
        model: the model's description.
        precision: of the forward pass.
        zero_stage: 0 to 3.
        world_size: ranks of the run.
        optimizer: the optimizer's name; Adam keeps two moments per parameter, SGD one.
        ranks_there: ranks that write to the same folder; all by default. What is not divided stands in each folder.
        averages: whether a moving average of the weights is kept (``optim.ema_decay``).
        part: what is trained, with adapters or frozen weights; all of the model by default.

    Returns:
        Bytes; the numbers are counted, and a small allowance stands for what is stored beside them.
    """
    moments_bytes = (4 if optimizer == "sgd" else 8) + 4 * averages
    number_bytes = 4 if precision == "fp32" else 2
    part = part or TrainedPart(count_parameters(model).total, 0, 0)
    tensors = max(part.tensors, _most_tensors(model))
    if zero_stage == 0:
        return part.total * 4 + part.trained * moments_bytes + _RANK_BYTES + _WHOLE_TENSOR_BYTES * tensors
    ranks = ranks_there or world_size
    in_parts = part.trained * (4 + moments_bytes) + (part.frozen * number_bytes if zero_stage == 3 else 0)
    whole = part.total * number_bytes if zero_stage < 3 else 0
    return -(-in_parts * ranks // world_size) + whole + ranks * (_RANK_BYTES + _TENSOR_BYTES * tensors)


def room_for(checkpoints: Path, free_bytes: int) -> Room:
    """Look at what a folder of checkpoints holds already.

    Args:
        checkpoints: the folder; it need not exist.
        free_bytes: free on its file system.

    Returns:
        The space for checkpoints.
    """
    files = (path for path in checkpoints.rglob("*") if path.is_file())
    return Room(free_bytes, sum(path.stat().st_size for path in files))


def checkpoint_lines(size: int, kept: Kept, room: Room | None, is_local: bool = False) -> list[str]:
    """Describe the space that checkpoints take.

    A checkpoint is complete before an older one makes room for it, so for a moment there is one more than are kept.

    Args:
        size: bytes of one.
        kept: how many stay.
        room: what there is; None where it is not known.
        is_local: whether it is the place on each node's own disk.

    Returns:
        Lines without line ends.
    """
    needed = (kept.total + 1) * size
    label, place = ("on each node", "checkpoint.local_dir here") if is_local else ("checkpoint", "the run directory")
    if not kept.total:
        return [f"{label:<14} none is saved: checkpoint.keep_last is 0"]
    first = f"{label:<14} {format_bytes(size)} each; {kept} kept and one being written: {format_bytes(needed)}"
    if room is None:
        return [first]
    there = f", {format_bytes(room.present_bytes)} in checkpoints" if room.present_bytes else ""
    lines = [
        first,
        f"{'':<14} free at {place}: {format_bytes(room.free_bytes)}{there}",
    ]
    if needed > room.free_bytes + room.present_bytes:
        lines.append(f"{'':<14} DOES NOT FIT: {_remedy(kept, is_local)}")
    return lines


def _remedy(kept: Kept, is_local: bool) -> str:
    if is_local:
        return "make room, or take a checkpoint.local_dir with more space"
    key = "raise checkpoint.keep_every_steps" if kept.multiples > kept.newest else "lower checkpoint.keep_last"
    return f"make room, {key}, or take a --run_dir with more space"


def _most_tensors(model: ModelConfig) -> int:
    """At least the number of tensors: layers with three matrices in the feed-forward layer, and all biases."""
    if model.kind == "cnn":
        return 2 * len(model.kernel_widths) + 3
    per_layer = 30 if model.n_encoder_layers else 18
    return per_layer * model.n_layers + 18 * model.n_encoder_layers + 6
