"""Opens the tensors of whatever a user names: a checkpoint of a run, a Hugging Face folder, or one file."""

from pathlib import Path

from scaletrain.convert.checkpoint_tensors import CheckpointTensors, find_checkpoint
from scaletrain.convert.safetensors_files import SafetensorsFolder
from scaletrain.convert.tensors import Tensors
from scaletrain.convert.weights_folder import is_weights_folder, open_weights
from scaletrain.errors import ConfigError
from scaletrain.protocols import Step


def open_tensors(place: Path, step: Step | None = None) -> Tensors:
    """Opens tensors.

    Args:
        place: A run directory, a folder of checkpoints, a checkpoint, a Hugging Face folder, or a safetensors file.
        step: Which checkpoint of a run; the newest intact one by default.

    Raises:
        CheckpointError: There are none, or they cannot be read.
        ConfigError: A step is asked for where there are none.
    """
    if place.is_file() or is_weights_folder(place):
        if step is not None:
            raise ConfigError(f"{place} is no run, so that it has no step {step}; leave the step out, or give a run")
        return SafetensorsFolder(place) if place.is_file() else open_weights(place)
    return CheckpointTensors(find_checkpoint(place, step))
