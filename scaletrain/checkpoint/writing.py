"""Writes one rank's share of a checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch

from scaletrain.checkpoint.durable import DurableFile, write_text
from scaletrain.checkpoint.fragments import describe_fragments
from scaletrain.checkpoint.records import FileRecord
from scaletrain.protocols import SavedPart


def write_tensors(path: Path, content: Any) -> FileRecord:
    """Writes what ``torch.save`` makes of an object, and forces it to the disk.

    The checksum is taken of the bytes on their way, so that it also tells what the disk changed at once. Hashing and
    writing release the interpreter's lock: a thread that calls this does not hold up the training.

    Args:
        path: A new file.
        content: Tensors in plain containers.

    Returns:
        The file's record.

    Raises:
        OSError: The file cannot be written; what is there of it is worth nothing.
    """
    with DurableFile(path) as file:
        torch.save(content, cast(IO[bytes], file))
        return file.finish()


def write_part(folder: Path, rank: int, part: SavedPart, texts: Mapping[str, str]) -> dict[str, FileRecord]:
    """Writes one rank's share of a checkpoint.

    Args:
        folder: The folder being written.
        rank: Global index of the rank.
        part: Its share.
        texts: Further files by name.

    Returns:
        The records of what was written.

    Raises:
        OSError: A file cannot be written.
    """
    described = {} if part.file is None else dict([describe_fragments(rank, part.file, part.fragments)])
    if part.frozen_file is not None:
        described |= [describe_fragments(rank, part.frozen_file, part.frozen, "_frozen")]
    records = {name: write_tensors(folder / name, content) for name, content in part.contents.items()}
    return records | {name: write_text(folder / name, text) for name, text in (described | dict(texts)).items()}
