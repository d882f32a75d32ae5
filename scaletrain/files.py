"""Files that are whole whenever somebody reads them: written under another name, then given theirs."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def replace_text(path: Path, text: str) -> None:
    """Writes a file in one piece, in place of one that bears the name; it is not forced to the disk.

    Args:
        path: The file.
        text: Its content.

    Raises:
        OSError: It cannot be written; what was there stays.
    """
    with _draft_of(path) as draft:
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, path)


def create_text(path: Path, text: str) -> None:
    """Writes a file in one piece and forces it to the disk; one that bears the name already stays as it is.

    Args:
        path: The file.
        text: Its content.

    Raises:
        OSError: It cannot be written.
    """
    with _draft_of(path) as draft:
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)  # unlike a rename, a link never replaces what stands there
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            if not path.exists():
                os.replace(draft, path)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a file for writing that gets its name only when all of it is on the disk.

    Args:
        path: The file's name at the end. A file that bears it already is replaced.

    Yields:
        The file, open for binary writing under a temporary name beside ``path``.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _draft_of(path: Path) -> Iterator[Path]:
    """A name that no other thread has, on this machine or another; nothing is left under it."""
    draft = path.with_name(f".{path.name}.{socket.gethostname()}.{threading.get_native_id()}")
    try:
        yield draft
    finally:
        draft.unlink(missing_ok=True)
