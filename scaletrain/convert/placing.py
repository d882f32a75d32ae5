"""Where each tensor of a file that is being written lies in it, known before the first byte is written."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scaletrain.convert.safetensors_files import CODES, INDEX, SINGLE
from scaletrain.convert.tensors import TensorInfo

_ALIGNMENT = 8  # of the data in a safetensors file
_CODE_OF = {dtype: code for code, dtype in CODES.items()}


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in a file, row by row.

    Attributes:
        path: The file.
        offset: Of its first byte.
        info: Its shape, and the type it is written in.
    """

    path: Path
    offset: int
    info: TensorInfo


def lay_out_safetensors(
    folder: Path, tensors: Mapping[str, TensorInfo], shard_bytes: int, metadata: Mapping[str, str]
) -> dict[str, Place]:
    """Begins the safetensors files of a folder, with an index where they are several.

    Args:
        folder: An empty folder.
        tensors: What is to be written, in this order.
        shard_bytes: Most bytes of tensors in a file; a larger tensor has a file of its own.
        metadata: Stands in the header of each.

    Returns:
        The place of each tensor. The files have their full sizes, and holes instead of numbers.

    Raises:
        OSError: A file cannot be written.
    """
    shards = _shards(tensors, shard_bytes)
    count = len(shards)
    names = [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    places: dict[str, Place] = {}
    for name, shard in zip(names if count > 1 else [SINGLE], shards, strict=True):
        places |= lay_out_file(folder / name, shard, metadata)
    if count > 1:
        index = {
            "metadata": {"total_size": sum(info.nbytes for info in tensors.values())},
            "weight_map": {name: places[name].path.name for name in sorted(tensors)},
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return places


def lay_out_file(path: Path, tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> dict[str, Place]:
    """Begins one safetensors file; see ``lay_out_safetensors``."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offsets: dict[str, int] = {}
    position = 0
    # Larger types first, so that each tensor begins at a multiple of its own type's size.
    for name, info in sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize):
        offsets[name] = position
        header[name] = {
            "dtype": _CODE_OF[info.dtype],
            "shape": list(info.shape),
            "data_offsets": [position, position + info.nbytes],
        }
        position += info.nbytes
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.truncate(8 + len(encoded) + position)
    return {name: Place(path, 8 + len(encoded) + offsets[name], info) for name, info in tensors.items()}


def _shards(tensors: Mapping[str, TensorInfo], shard_bytes: int) -> list[dict[str, TensorInfo]]:
    shards: list[dict[str, TensorInfo]] = [{}]
    filled = 0
    for name, info in tensors.items():
        if shards[-1] and filled + info.nbytes > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = info
        filled += info.nbytes
    return shards
