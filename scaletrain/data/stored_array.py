"""The header of an array in numpy's npy format, read without numpy's reader, which would allocate what it claims."""

import io
import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

LARGEST_HEADER = 512  # bytes; that of a one-dimensional array of numbers takes 128


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
