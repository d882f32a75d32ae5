"""The weights of a Hugging Face folder, in whichever files it has them."""

from pathlib import Path

from scaletrain.convert import safetensors_files, torch_files
from scaletrain.convert.tensors import Tensors


def open_weights(folder: Path) -> Tensors:
    """Opens the weights of a Hugging Face folder: safetensors where there are some.

    Raises:
        CheckpointError: There are no weights, or they cannot be read.
    """
    has_safetensors = any((folder / name).is_file() for name in (safetensors_files.SINGLE, safetensors_files.INDEX))
    if not has_safetensors and any((folder / name).is_file() for name in (torch_files.SINGLE, torch_files.INDEX)):
        return torch_files.TorchFolder(folder)
    return safetensors_files.SafetensorsFolder(folder)
