"""What a file of a checkpoint must be: its size and its checksum."""

from dataclasses import dataclass
from pathlib import Path

import xxhash

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
