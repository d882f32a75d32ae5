"""The words of a corpus with parts: the highest bit is the token's part, the rest of the word the token."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def join_parts(tokens: ArrayLike, parts: ArrayLike, dtype: np.dtype[np.unsignedinteger]) -> NDArray[np.unsignedinteger]:
    """Makes words of tokens and their parts.

    Args:
        tokens: Tokens (n,), below ``largest_vocabulary(dtype, parts=True)``.
        parts: Part of each, 0 or 1 (n,).
        dtype: Of the words, uint16 or uint32.

    Returns:
        Words (n,).
    """
    words: NDArray[np.unsignedinteger] = np.asarray(parts, dtype=dtype) << dtype.type(8 * dtype.itemsize - 1)
    words |= np.asarray(tokens, dtype=dtype)
    return words


def split_parts(words: NDArray[np.unsignedinteger]) -> tuple[NDArray[np.unsignedinteger], NDArray[np.uint8]]:
    """Takes words apart.

    Args:
        words: Words of any shape, uint16 or uint32.

    Returns:
        Tokens of the same shape and type, and the part of each, 0 or 1, uint8.
    """
    kind = words.dtype.type
    bit = kind(8 * words.dtype.itemsize - 1)
    return words & ~(kind(1) << bit), (words >> bit).astype(np.uint8)
