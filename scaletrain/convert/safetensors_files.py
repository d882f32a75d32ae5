"""Reads safetensors files slice by slice: their headers are small, and nothing else is held."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scaletrain.convert.tensors import TensorInfo
from scaletrain.errors import CheckpointError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

# As the format names them: https://huggingface.co/docs/safetensors
CODES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_MOST_HEADER_BYTES = 100_000_000  # the format's own limit


@dataclass(frozen=True)
class _Stored:
    file: Path
    offset: int
    info: TensorInfo


class SafetensorsFolder:
    """The tensors of a folder's ``model.safetensors``, or of the shards that its index names."""

    def __init__(self, folder: Path) -> None:
        """Reads the headers.

        Args:
            folder: A folder, or one safetensors file.

        Raises:
            CheckpointError: There are no such files, or one is damaged; shards miss tensors or hold others.
        """
        self._stored: dict[str, _Stored] = {}
        self.metadata: dict[str, str] = {}
        self._descriptors: dict[Path, int] = {}
        if folder.is_file():
            self._take(folder)
        elif (folder / INDEX).is_file():
            self._take_shards(folder)
        elif (folder / SINGLE).is_file():
            self._take(folder / SINGLE)
        else:
            raise CheckpointError(f"{folder} holds neither {SINGLE} nor {INDEX}; give a folder with weights")

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """What there is, by name."""
        return {name: stored.info for name, stored in self._stored.items()}

    def read(self, name: str, start: int, numel: int) -> Tensor:
        """Reads a range of a flattened tensor; see ``Tensors``."""
        stored = self._stored[name]
        size = stored.info.dtype.itemsize
        result = torch.empty(numel, dtype=stored.info.dtype)
        view = result.view(torch.uint8).numpy().data if numel else memoryview(b"")
        position = stored.offset + start * size
        while view:
            count = os.preadv(self._open(stored.file), [view], position)
            if not count:
                raise CheckpointError(f"{stored.file} ends within {name}. Copy or convert it anew.")
            view, position = view[count:], position + count
        return result

    def release(self) -> None:
        """Closes the files."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def _open(self, file: Path) -> int:
        if file not in self._descriptors:
            self._descriptors[file] = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        return self._descriptors[file]

    def _take_shards(self, folder: Path) -> None:
        placed = read_index(folder / INDEX)
        for shard in sorted(set(placed.values())):
            self._take(folder / shard)
        wrong = [f"{name} is not in {shard}" for name, shard in placed.items() if not self._is_in(name, folder / shard)]
        wrong += [f"{name} is not in the index" for name in self._stored if name not in placed]
        if wrong:
            told = "".join(f"\n  {problem}" for problem in wrong)
            raise CheckpointError(f"{folder / INDEX} does not fit its shards:{told}\nCopy the folder anew.")

    def _is_in(self, name: str, file: Path) -> bool:
        return name in self._stored and self._stored[name].file == file

    def _take(self, file: Path) -> None:
        header, data_start = read_header(file)
        size = file.stat().st_size
        for name, entry in header.items():
            if name == "__metadata__":
                self.metadata |= entry if isinstance(entry, dict) else {}
                continue
            stored = _stored(file, name, entry, data_start)
            if stored.offset + stored.info.nbytes > size:
                raise CheckpointError(f"{file} ends before {name}: it is cut off. Copy it anew.")
            self._stored[name] = stored


def read_index(path: Path, single: str = SINGLE) -> dict[str, str]:
    """Reads which shard holds which tensor.

    Args:
        path: The index.
        single: Name of the file that there is without one, for the message.

    Returns:
        Names of files in the same folder, by names of tensors.

    Raises:
        CheckpointError: It cannot be read, or names a file elsewhere, or one that is not there.
    """
    try:
        placed = dict(json.loads(path.read_text())["weight_map"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is no index of {single}: {error}. Copy it anew.") from None
    for name, shard in placed.items():
        # An index may come from a stranger: no path leads out of its folder.
        if not isinstance(shard, str) or Path(shard).name != shard or shard in ("", ".", ".."):
            raise CheckpointError(
                f"{path} places {name} in {shard!r}, which is no name of a file in the same folder; it is refused. "
                "Get the weights from a source that you trust."
            )
    missing = sorted({shard for shard in placed.values() if not (path.parent / shard).is_file()})
    if missing:
        raise CheckpointError(f"{path} names files that are not there: {', '.join(missing)}. Copy the folder anew.")
    return placed


def read_header(file: Path) -> tuple[dict[str, Any], int]:
    """Reads what a safetensors file says of its tensors.

    Args:
        file: The file.

    Returns:
        The header, and where the data begins.

    Raises:
        CheckpointError: It is no safetensors file.
    """
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if not 2 <= length <= min(_MOST_HEADER_BYTES, file.stat().st_size - 8):
                raise ValueError(f"its header would have {length} bytes")
            return dict(json.loads(opened.read(length))), 8 + length
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{file} is no safetensors file: {error}. Copy it anew.") from None


def _stored(file: Path, name: str, entry: Any, data_start: int) -> _Stored:
    try:
        shape, (start, stop) = tuple(map(int, entry["shape"])), map(int, entry["data_offsets"])
        code = str(entry["dtype"])
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise CheckpointError(f"{file}: what it says of {name} cannot be read: {error}. Copy it anew.") from None
    if code not in CODES:
        raise CheckpointError(
            f"{file}: {name} is stored as {code}, which is not one of {', '.join(CODES)}; "
            "quantized weights are not converted: get the original ones"
        )
    info = TensorInfo(shape, CODES[code])
    if start < 0 or any(side < 0 for side in shape) or stop - start != math.prod(shape) * info.dtype.itemsize:
        raise CheckpointError(f"{file}: {name} has {stop - start} bytes, but {list(shape)} as {code} needs others.")
    return _Stored(file, data_start + start, info)
