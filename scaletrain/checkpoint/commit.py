"""The commit protocol: a checkpoint exists when all of its bytes are durable, or not at all.

Files are written into a partial folder, each is forced to the disk and its checksum taken; then files.json,
COMPLETE and the rename to the final name follow, each durable before the next.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import xxhash

from scaletrain.checkpoint.layout import COMPLETE, FILES, list_checkpoints, step_of

_CHUNK_BYTES = 8 << 20


@dataclass(frozen=True)
class FileRecord:
    """What a file of a checkpoint must be.

    Attributes:
        size: Bytes.
        xxh3_128: Checksum of the content, in hexadecimal digits.
    """

    size: int
    xxh3_128: str


def checksum(path: Path) -> FileRecord:
    """Size and checksum of a file's content."""
    digest = xxhash.xxh3_128()
    size = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return FileRecord(size, digest.hexdigest())


def list_files(partial: Path) -> list[str]:
    """Files of a folder being written, by relative path; one process lists for all, lest they see it differently."""
    return sorted(path.relative_to(partial).as_posix() for path in partial.rglob("*") if path.is_file())


def make_durable(partial: Path, files: Sequence[str]) -> dict[str, FileRecord]:
    """Forces files to the disk and takes their checksums.

    Args:
        partial: The folder being written.
        files: Some of its files, closed.

    Returns:
        Their records.
    """
    records = {}
    for name in files:
        _sync(partial / name)
        records[name] = checksum(partial / name)
    return records


def commit(partial: Path, final: Path, records: Mapping[str, FileRecord]) -> None:
    """Publishes a checkpoint, once all shares of its files are durable.

    Args:
        partial: The folder that was written.
        final: Its name from now on. A damaged folder of that name is replaced; a complete one too, since
            the run has reached this step again.
        records: Of all files.
    """
    content = {"files": {name: asdict(record) for name, record in sorted(records.items())}}
    (partial / FILES).write_text(json.dumps(content, indent=1))
    _sync(partial / FILES)
    (partial / COMPLETE).write_text(f"{checksum(partial / FILES).xxh3_128}\n")
    _sync(partial / COMPLETE)
    _sync(partial)
    if final.exists():
        (final / COMPLETE).unlink(missing_ok=True)
        shutil.rmtree(final)
    os.rename(partial, final)
    _sync(final.parent)


def prune(checkpoints: Path, keep_last: int, current_step: int) -> list[Path]:
    """Deletes the oldest complete checkpoints.

    One of a later step than the run's own was refused when the run went on from an older one. It does not count
    among those that stay, or it would take the place of an intact one.

    Args:
        checkpoints: The run's ``checkpoints`` folder.
        keep_last: Number that stay, of those up to ``current_step``.
        current_step: Where the run stands.

    Returns:
        The folders that were deleted.
    """
    own = [folder for folder in list_checkpoints(checkpoints) if (step_of(folder) or 0) <= current_step]
    old = own[keep_last:]
    for folder in old:
        # Without COMPLETE a half-deleted folder does not exist for the loader.
        (folder / COMPLETE).unlink()
        shutil.rmtree(folder)
    return old


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
