"""Lays pieces of documents out as the arrays of a micro batch, with borders that nothing crosses.

Shapes: B rows, T places of a row (``max_seq_len``).
"""

from array import array
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

IGNORED = -100
"""Target of a place where nothing is predicted: the number that cross-entropy ignores."""


class Row(NamedTuple):
    """Where the pieces of one row lie.

    Attributes:
        begins: First place of each piece, ascending from 0.
        end: Place behind the last token, at most T + 1: the last piece may bring the target of place T - 1 with it.
        masked: Pieces, as (first place, place behind the last), whose tokens are not to be learnt.
    """

    begins: Sequence[int]
    end: int
    masked: Sequence[tuple[int, int]] = ()


class PackedRows(NamedTuple):
    """The arrays of a micro batch.

    Attributes:
        tokens: Inputs (B, T), int64.
        targets: The next token of the same piece (B, T), int64; ``IGNORED`` where there is none.
        documents: Number of the piece that each place belongs to (B, T), int32, from 0; None where every row is one.
        positions: Place in the piece (B, T), int64, from 0; None with ``documents``.
    """

    tokens: NDArray[np.int64]
    targets: NDArray[np.int64]
    documents: NDArray[np.int32] | None
    positions: NDArray[np.int64] | None


def pack(stream: NDArray[np.unsignedinteger], rows: Sequence[Row], borders: bool = True) -> PackedRows:
    """Makes inputs, targets, documents and positions of tokens that lie in rows.

    Args:
        stream: Tokens (B, T + 1); the end-of-text token where a row has none.
        rows: Where the pieces of each row lie (B). Places behind the last piece count as part of it, so that they add
            no border.
        borders: Whether to number documents and positions.

    Returns:
        The arrays. No target crosses from one piece into the next, and positions begin anew with each piece.
    """
    n_rows, width = stream.shape
    places = width - 1
    tokens = stream[:, :-1].astype(np.int64)
    targets = stream[:, 1:].astype(np.int64)
    begins = [row * places + begin for row, found in enumerate(rows) for begin in found.begins]
    flat = targets.ravel()
    # The place before a piece's first token; for a row's first piece that is the last place of the row before, which
    # has a target only where its last piece goes on there.
    inner = [begin - 1 for begin in begins if begin % places]
    flat[inner] = IGNORED
    for row, found in enumerate(rows):
        if found.end <= places:
            targets[row, max(0, found.end - 1) :] = IGNORED
        for first, behind in found.masked:
            targets[row, first : behind - 1] = IGNORED
    if not borders or len(begins) == n_rows:
        return PackedRows(tokens, targets, None, None)
    lengths = np.diff(begins, append=n_rows * places)
    numbers = np.concatenate([np.arange(len(found.begins), dtype=np.int32) for found in rows])
    documents = np.repeat(numbers, lengths).reshape(n_rows, places)
    positions = np.arange(n_rows * places) - np.repeat(begins, lengths)
    return PackedRows(tokens, targets, documents, positions.reshape(n_rows, places))


def row_checksum(sequence: int, tokens: NDArray[np.unsignedinteger], row: Row) -> int:
    """Checksum of one sequence: of its tokens, of where its pieces lie, and of its index in the run.

    Args:
        sequence: The index.
        tokens: The row (T + 1,), of the stored type.
        row: Where its pieces lie.

    Returns:
        A number from 0 to 2**64 - 1. The checksum of a batch is the sum over its sequences modulo 2**64, so that it
        does not matter which rank holds which.
    """
    places = array("i", [*row.begins, row.end])
    for masked in row.masked:
        places.extend(masked)
    return xxhash.xxh3_64_intdigest(places, xxhash.xxh3_64_intdigest(tokens.data, sequence))


def value_checksum(sequence: int, values: NDArray[np.float64]) -> int:
    """Checksum of the values of a sequence's document; added to the row's.

    Args:
        sequence: The index.
        values: The values (M,).

    Returns:
        A number from 0 to 2**64 - 1; 0 without values.
    """
    return xxhash.xxh3_64_intdigest(values.tobytes(), sequence) if len(values) else 0
