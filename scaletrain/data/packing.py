"""Joins pieces of documents into the arrays of one sequence, with borders that nothing crosses."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

IGNORED = -100
"""Target of a place where nothing is predicted: the number that cross-entropy ignores."""


@dataclass(frozen=True)
class PackedSequence:
    """One sequence of ``max_seq_len`` places.

    Attributes:
        tokens: Inputs (T,), int64.
        targets: The next token of the same document (T,), int64; ``IGNORED`` where there is none.
        documents: Number of the piece that each place belongs to (T,), int32, from 0.
        positions: Place in the piece (T,), int32, from 0.
    """

    tokens: NDArray[np.int64]
    targets: NDArray[np.int64]
    documents: NDArray[np.int32]
    positions: NDArray[np.int32]


def pack(pieces: Sequence[NDArray[Any]], max_seq_len: int, eos_id: int) -> PackedSequence:
    """Packs pieces of documents into one sequence.

    Args:
        pieces: Tokens of each piece, integers (n,), together 1 to ``max_seq_len + 1``; the last one may bring the
            target of the last place with it.
        max_seq_len: Places of the sequence.
        eos_id: Fills the places after the last piece. They count as part of it, so that they add no border.

    Returns:
        The sequence. No target crosses from one piece into the next, and positions begin anew with each piece.

    Raises:
        ValueError: The pieces are too long, or there is nothing in them.
    """
    joined = np.concatenate(pieces).astype(np.int64, copy=False)
    if not 0 < len(joined) <= max_seq_len + 1:
        raise ValueError(f"{len(joined)} tokens do not make a sequence of {max_seq_len} inputs and one more target")
    n_inputs = min(len(joined), max_seq_len)
    tokens = np.full(max_seq_len, eos_id, dtype=np.int64)
    tokens[:n_inputs] = joined[:n_inputs]
    targets = np.full(max_seq_len, IGNORED, dtype=np.int64)
    targets[: len(joined) - 1] = joined[1:]
    begins = np.cumsum([0] + [len(piece) for piece in pieces[:-1]])
    targets[begins[1:] - 1] = IGNORED
    lengths = np.diff(np.append(begins, max_seq_len))
    documents = np.repeat(np.arange(len(pieces), dtype=np.int32), lengths)
    positions = (np.arange(max_seq_len) - np.repeat(begins, lengths)).astype(np.int32)
    return PackedSequence(tokens, targets, documents, positions)


def filling(max_seq_len: int, eos_id: int) -> PackedSequence:
    """A sequence without targets, which fills up a micro batch and weighs nothing.

    Args:
        max_seq_len: Places of the sequence.
        eos_id: The token in each of them.

    Returns:
        The sequence: one document, all targets ``IGNORED``.
    """
    return pack([np.array([eos_id])], max_seq_len, eos_id)
