"""The commit protocol: a checkpoint exists when all of its bytes are durable, or not at all.

Files are written into a partial folder, each durable and with its checksum (``writing``); then files.json,
COMPLETE and the rename to the final name follow, each durable before the next.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from scaletrain.checkpoint.durable import write_text
from scaletrain.checkpoint.layout import COMPLETE, FILES, discarded_name
from scaletrain.checkpoint.records import FileRecord


def prepare(partial: Path) -> int:
    """Makes the folder that a checkpoint is written into.

    Args:
        partial: The folder; what an earlier try left in it is deleted.

    Returns:
        Bytes that are free there.

    Raises:
        OSError: The folder cannot be made.
    """
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    return shutil.disk_usage(partial).free


def commit(partial: Path, final: Path, records: Mapping[str, FileRecord]) -> None:
    """Publishes a checkpoint, once all of its files are durable.

    Args:
        partial: The folder that was written.
        final: Its name from now on. A damaged folder of that name is replaced; a complete one too, since
            the run has reached this step again.
        records: Of all files.

    Raises:
        OSError: The file system refused.
    """
    content = {"files": {name: asdict(record) for name, record in sorted(records.items())}}
    listed = write_text(partial / FILES, json.dumps(content, indent=1))
    write_text(partial / COMPLETE, f"{listed.xxh3_128}\n")
    _sync(partial)
    if final.exists():
        discard(final)
    os.rename(partial, final)
    _sync(final.parent)


def discard(folder: Path) -> None:
    """Deletes a checkpoint. It is renamed first: a half-deleted folder is one that no reader looks at.

    Args:
        folder: A checkpoint's folder.

    Raises:
        OSError: The file system refused.
    """
    if folder.is_symlink():  # a user has moved it elsewhere: what it leads to is theirs
        folder.unlink()
        return
    condemned = folder.with_name(discarded_name(folder))
    if condemned.exists():
        shutil.rmtree(condemned)
    os.rename(folder, condemned)
    shutil.rmtree(condemned)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
