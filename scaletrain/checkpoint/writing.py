"""Writes files of a checkpoint: durable when the call returns, with the checksum of what was meant to be written."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch
import xxhash

from scaletrain.checkpoint.fragments import describe_fragments
from scaletrain.checkpoint.records import FileRecord
from scaletrain.protocols import SavedPart

_MOST_BYTES_A_CALL = 64 << 20  # the system takes 2 GiB at most


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
    with _DurableFile(path) as file:
        torch.save(content, cast(IO[bytes], file))
        return file.finish()


def write_text(path: Path, text: str) -> FileRecord:
    """Writes a text, and forces it to the disk.

    Args:
        path: A new file.
        text: Its content.

    Returns:
        The file's record.

    Raises:
        OSError: The file cannot be written.
    """
    with _DurableFile(path) as file:
        file.write(text.encode())
        return file.finish()


class _DurableFile:
    """A file for ``torch.save``, which must not meet an error: thrown through its C++ code one can end the process."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        self._digest = xxhash.xxh3_128()
        self._size = 0
        self._error: OSError | None = None

    def __enter__(self) -> "_DurableFile":
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._descriptor)

    def write(self, data: bytes | memoryview) -> int:
        """Takes all of the data; what goes wrong is told by ``finish``."""
        view = memoryview(data).cast("B")
        self._digest.update(view)
        self._size += len(view)
        try:
            start = 0
            while self._error is None and start < len(view):
                start += os.write(self._descriptor, view[start : start + _MOST_BYTES_A_CALL])
        except OSError as error:
            self._error = error
        return len(view)

    def flush(self) -> None:
        """Nothing is held back."""

    def finish(self) -> FileRecord:
        """Forces the file to the disk; raises what went wrong."""
        if self._error is not None:
            raise self._error
        os.fsync(self._descriptor)
        return FileRecord(self._size, self._digest.hexdigest())


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
    records = {name: write_tensors(folder / name, content) for name, content in part.contents.items()}
    return records | {name: write_text(folder / name, text) for name, text in (described | dict(texts)).items()}
