"""Arrays in numpy's formats npy and npz, read without numpy's readers, which would allocate what a file claims."""

import io
import math
import os
import zipfile
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

LARGEST_HEADER = 512  # bytes; that of a one-dimensional array of numbers takes 128
_LARGEST_DIRECTORY = 4096  # bytes of a zip's list of its parts; ten arrays take less than 1,000
_END_OF_DIRECTORY, _END_OF_LARGE_DIRECTORY = b"PK\5\6", b"PK\6\7"
_ENCRYPTED = 1
_KINDS = "iufU"  # numbers and text


class ArrayHeader(NamedTuple):
    """What a header says; ``n_bytes`` is its own length, behind which the numbers lie."""

    n_bytes: int
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]

    @property
    def end(self) -> int:
        """Bytes of header and numbers together."""
        return self.n_bytes + math.prod(self.shape) * self.dtype.itemsize


def parse_array_header(start: bytes) -> ArrayHeader:
    """Parses the header of an array.

    Args:
        start: First bytes of the file, ``LARGEST_HEADER`` of them where it has as many.

    Returns:
        The header.

    Raises:
        ValueError: It is none, or longer than that of numbers.
    """
    length = int.from_bytes(start[8:10], "little") + 10 if start[6:7] == b"\1" else LARGEST_HEADER
    try:
        return _parse(start[: min(length, LARGEST_HEADER)])
    except Exception as error:  # numpy hands it to Python's own parser, which stumbles in many ways
        raise ValueError(f"no header of the npy format: {error}") from None


@lru_cache(maxsize=1024)
def _parse(start: bytes) -> ArrayHeader:
    # Equal shapes have equal headers, and parsing one takes longer than all else that a small document needs.
    stream = io.BytesIO(start)
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise ValueError(f"version {version} of the npy format")
    return ArrayHeader(stream.tell(), shape, dtype)


def read_arrays(stream: BinaryIO, names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Reads arrays of an npz file that is not compressed. It takes no more memory than the file has bytes.

    Args:
        stream: The open file.
        names: Of the arrays, which hold numbers or text.

    Returns:
        Those of them that are there, read-only.

    Raises:
        ValueError: The file or one of these arrays is of another form.
        Exception: It is damaged in one of the many other ways that zipfile tells.
    """
    size = stream.seek(0, os.SEEK_END)
    _check_directory(stream, size)
    with zipfile.ZipFile(stream) as archive:
        parts = archive.infolist()
        if any(part.compress_type != zipfile.ZIP_STORED or part.flag_bits & _ENCRYPTED for part in parts):
            raise ValueError("it is compressed or encrypted")
        if any(part.file_size != part.compress_size for part in parts) or sum(p.file_size for p in parts) > size:
            raise ValueError("it claims more than it holds")
        there = set(archive.namelist())
        return {name: _array(archive.read(f"{name}.npy"), name) for name in names if f"{name}.npy" in there}


def _check_directory(stream: BinaryIO, size: int) -> None:
    """Each entry of the list of parts becomes an object of many times its size."""
    stream.seek(max(0, size - 42))
    end = stream.read(42)  # perhaps a pointer to the end of a large list, and the end without a comment
    listed = int.from_bytes(end[-10:-6], "little")
    if end[-22:-18] != _END_OF_DIRECTORY or end[:4] == _END_OF_LARGE_DIRECTORY or listed > _LARGEST_DIRECTORY:
        raise ValueError("it is no zip file with a short list of arrays")


def _array(content: bytes, name: str) -> NDArray[Any]:
    header = parse_array_header(content[:LARGEST_HEADER])
    if header.dtype.kind not in _KINDS or header.end != len(content):
        raise ValueError(f"{name} has shape {header.shape} and type {header.dtype} in {len(content)} bytes")
    return np.frombuffer(content, header.dtype, offset=header.n_bytes).reshape(header.shape)
