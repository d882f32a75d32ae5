"""The weights of a Hugging Face folder, in whichever files it has them."""

from pathlib import Path

from scaletrain.convert import safetensors_files, torch_files
from scaletrain.convert.tensors import Tensors

_SAFETENSORS = (safetensors_files.SINGLE, safetensors_files.INDEX)
_PICKLED = (torch_files.SINGLE, torch_files.INDEX)


def is_weights_folder(folder: Path) -> bool:
    """Whether a folder holds weights under the names that Hugging Face gives them, and a ``config.json``."""
    return (folder / "config.json").is_file() and (_has(folder, _SAFETENSORS) or _has(folder, _PICKLED))


def open_weights(folder: Path) -> Tensors:
    """Opens the weights of a Hugging Face folder: safetensors where there are some.

    Raises:
        CheckpointError: There are no weights, or they cannot be read.
    """
    if not _has(folder, _SAFETENSORS) and _has(folder, _PICKLED):
        return torch_files.TorchFolder(folder)
    return safetensors_files.SafetensorsFolder(folder)


def _has(folder: Path, names: tuple[str, str]) -> bool:
    return any((folder / name).is_file() for name in names)
