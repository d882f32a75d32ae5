"""Files that are on the disk when the call returns, with the checksum of what was meant to be written."""

import os
from pathlib import Path

import xxhash

from scaletrain.checkpoint.records import FileRecord

_MOST_BYTES_A_CALL = 64 << 20  # the system takes 2 GiB at most


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
    with DurableFile(path) as file:
        file.write(text.encode())
        return file.finish()


class DurableFile:
    """A file for ``torch.save``, which must not meet an error: thrown through its C++ code one can end the process."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        self._digest = xxhash.xxh3_128()
        self._size = 0
        self._error: OSError | None = None

    def __enter__(self) -> "DurableFile":
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
