"""How large a checkpoint is, and whether those that are kept fit where they go."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from scaletrain.config.schema import ModelConfig
from scaletrain.planning.parameters import count_parameters
from scaletrain.planning.report import format_bytes

# What stands beside the numbers: torch's archive keeps a name, a header and padding for each tensor, and each rank
# describes in JSON what its file holds. Measured, and rounded up.
_RANK_BYTES = 2**13
_TENSOR_BYTES = 2**9
_WHOLE_TENSOR_BYTES = 3 * 2**9  # stage 0 stores each weight, its two moments and its count of steps apart


@dataclass(frozen=True)
class Room:
    """Space for checkpoints.

    Attributes:
        free_bytes: free on the file system of the run directory.
        present_bytes: checkpoints that stand there already, which later ones replace.
    """

    free_bytes: int
    present_bytes: int


def checkpoint_bytes(
    model: ModelConfig,
    precision: Literal["fp32", "bf16", "fp16"],
    zero_stage: int,
    world_size: int,
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw",
) -> int:
    """Count the bytes of one checkpoint's files, of all ranks together.

    Stage 0 stores fp32 weights once, whatever the precision; they are its masters. Stages 1 and 2 store the weights of
    the forward pass in the run's precision, and fp32 masters beside them, in fp32 too. Stage 3 stores masters only.

    Args:
        model: the model's description.
        precision: of the forward pass.
        zero_stage: 0 to 3.
        world_size: ranks of the run.
        optimizer: the optimizer's name; Adam keeps two moments per parameter, SGD one.

    Returns:
        Bytes; the numbers are counted, and a small allowance stands for what is stored beside them.
    """
    moments_bytes = 4 if optimizer == "sgd" else 8
    forward_bytes = (4 if precision == "fp32" else 2) if zero_stage in (1, 2) else 0
    numbers = count_parameters(model).total * (4 + moments_bytes + forward_bytes)
    tensors = _most_tensors(model)
    if zero_stage == 0:
        return numbers + _RANK_BYTES + _WHOLE_TENSOR_BYTES * tensors
    return numbers + world_size * (_RANK_BYTES + _TENSOR_BYTES * tensors)


def room_for(run_dir: Path, free_bytes: int) -> Room:
    """Look at what a run directory holds already.

    Args:
        run_dir: the run's folder; it need not exist.
        free_bytes: free on its file system.

    Returns:
        The space for its checkpoints.
    """
    files = (path for path in (run_dir / "checkpoints").rglob("*") if path.is_file())
    return Room(free_bytes, sum(path.stat().st_size for path in files))


def checkpoint_lines(size: int, keep_last: int, room: Room | None) -> list[str]:
    """Describe the space that checkpoints take.

    A checkpoint is complete before an older one makes room for it, so for a moment there is one more than are kept.

    Args:
        size: bytes of one.
        keep_last: how many stay.
        room: what there is; None where it is not known.

    Returns:
        Lines without line ends.
    """
    needed = (keep_last + 1) * size
    kept = f"{format_bytes(size)} each; {keep_last} kept and one being written: {format_bytes(needed)}"
    if room is None:
        return [f"{'checkpoint':<14} {kept}"]
    there = f", {format_bytes(room.present_bytes)} in checkpoints" if room.present_bytes else ""
    lines = [
        f"{'checkpoint':<14} {kept}",
        f"{'':<14} free at the run directory: {format_bytes(room.free_bytes)}{there}",
    ]
    if needed > room.free_bytes + room.present_bytes:
        lines.append(
            f"{'':<14} DOES NOT FIT: make room, lower checkpoint.keep_last, or take a --run_dir with more space"
        )
    return lines


def _most_tensors(model: ModelConfig) -> int:
    """At least the number of tensors: layers with three matrices in the feed-forward layer, and all biases."""
    return 18 * model.n_layers + 6
