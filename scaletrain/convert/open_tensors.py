"""Opens the tensors of whatever a user names: a checkpoint of a run, a Hugging Face folder, or one file."""

from pathlib import Path

from scaletrain.convert.checkpoint_tensors import CheckpointTensors, find_checkpoint
from scaletrain.convert.safetensors_files import SafetensorsFolder
from scaletrain.convert.tensors import Tensors
from scaletrain.convert.weights_folder import is_weights_folder, open_weights


def open_tensors(place: Path, step: int | None = None) -> Tensors:
    """Opens tensors.

    Args:
        place: A run directory, a folder of checkpoints, a checkpoint, a Hugging Face folder, or a safetensors file.
        step: Which checkpoint of a run; the newest intact one by default.

    Raises:
        CheckpointError: There are none, or they cannot be read.
    """
    if place.is_file():
        return SafetensorsFolder(place)
    if is_weights_folder(place):
        return open_weights(place)
    return CheckpointTensors(find_checkpoint(place, step))
