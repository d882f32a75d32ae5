"""Reads weights that ``torch.save`` wrote: tensors and plain containers only, never code."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scaletrain.convert.safetensors_files import read_index
from scaletrain.convert.tensors import TensorInfo
from scaletrain.errors import CheckpointError

SINGLE = "pytorch_model.bin"
INDEX = "pytorch_model.bin.index.json"


class TorchFolder:
    """The tensors of a folder's ``pytorch_model.bin``, or of the shards that its index names."""

    def __init__(self, folder: Path) -> None:
        """Opens the files.

        Args:
            folder: The folder, or one file.

        Raises:
            CheckpointError: There are no such files, one holds other things than tensors, or tensors are missing.
        """
        self._contents: dict[Path, dict[str, Tensor]] = {}
        if folder.is_file():
            placed = dict.fromkeys(self._open(folder), folder)
        elif (folder / INDEX).is_file():
            placed = {name: folder / shard for name, shard in read_index(folder / INDEX, SINGLE).items()}
        elif (folder / SINGLE).is_file():
            placed = dict.fromkeys(self._open(folder / SINGLE), folder / SINGLE)
        else:
            raise CheckpointError(f"{folder} holds neither {SINGLE} nor {INDEX}; give a folder with weights")
        self._files = placed
        missing = [name for name, file in placed.items() if name not in self._open(file)]
        if missing:
            raise CheckpointError(f"{folder}: the shards lack {', '.join(missing)}. Copy the folder anew.")
        self.infos: Mapping[str, TensorInfo] = {name: self._info(name) for name in placed}
        self.release()

    def read(self, name: str, start: int, numel: int) -> Tensor:
        """Reads a range of a flattened tensor; see ``Tensors``."""
        tensor = self._open(self._files[name])[name]
        # Of a tensor whose memory is in another order a flat view would be a copy of the whole.
        if tensor.is_contiguous():
            return tensor.view(-1).narrow(0, start, numel).clone()
        return tensor.reshape(-1).narrow(0, start, numel).clone()

    def release(self) -> None:
        """Unmaps the files."""
        self._contents.clear()

    def _info(self, name: str) -> TensorInfo:
        tensor = self._open(self._files[name])[name]
        return TensorInfo(tuple(tensor.shape), tensor.dtype)

    def _open(self, file: Path) -> dict[str, Tensor]:
        if file not in self._contents:
            self._contents[file] = _load(file)
        return self._contents[file]


def _load(file: Path) -> dict[str, Tensor]:
    try:
        content: Any = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except RuntimeError:
        content = _load_old(file)  # the format before torch 1.6 cannot be mapped
    except Exception as error:  # unpickling of damaged or malicious files raises errors of any kind
        raise _refusal(file, error) from None
    if not isinstance(content, dict) or not all(_is_named_tensor(*item) for item in content.items()):
        raise CheckpointError(f"{file} holds other things than plain tensors by name; get the weights as safetensors")
    return content


def _is_named_tensor(name: Any, value: Any) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided


def _load_old(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # as above
        raise _refusal(file, error) from None


def _refusal(file: Path, error: Exception) -> CheckpointError:
    # torch would advise to load the file without care, which runs whatever code is in it.
    return CheckpointError(
        f"{file} is refused: it is damaged, or holds more than tensors: {str(error).partition(chr(10))[0][:200]}. "
        "Get the weights as safetensors."
    )
