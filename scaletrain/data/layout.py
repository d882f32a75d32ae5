"""How the documents of a window become sequences: joined and cut, packed so that few are cut, or one by one.

A sequence is a row of pieces, ranges of tokens of documents. It has T inputs and one look-ahead token, the target of
the last input. Each token but a document's first is a target in exactly one sequence of the window.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Layout:
    """The sequences of a window: sequence j has the pieces ``first_piece[j]`` to ``first_piece[j + 1]``.

    Attributes:
        first_piece: (sequences + 1,), int64.
        documents: Document of each piece, counted through the window's shards (pieces,), int64.
        starts: First token of each piece in its document (pieces,), int64.
        stops: Token behind its last, which may be the look-ahead token of the sequence (pieces,), int64.
    """

    first_piece: Integers
    documents: Integers
    starts: Integers
    stops: Integers

    def __len__(self) -> int:
        return len(self.first_piece) - 1


def concat_length(n_tokens: int, max_seq_len: int) -> int:
    """Sequences that a window of so many tokens is cut into."""
    return -(-max(0, n_tokens - 1) // max_seq_len)


def concat(lengths: Integers, order: Integers, max_seq_len: int) -> Layout:
    """Joins documents in the order given and cuts them into sequences.

    Args:
        lengths: Tokens of each document (documents,).
        order: The documents in the order in which they are joined (documents,).
        max_seq_len: Inputs of a sequence, T.

    Returns:
        Sequence j takes its inputs from token ``j * T`` of the joined stream on. Its last piece brings the look-ahead
        token where the document goes on there; no document predicts the next.
    """
    order = order[lengths[order] > 0]
    ends = np.cumsum(lengths[order])
    total = int(ends[-1]) if len(ends) else 0
    sequences = concat_length(total, max_seq_len)
    cuts = np.arange(sequences, dtype=np.int64) * max_seq_len
    inputs_end = min(total, sequences * max_seq_len)
    begins = ends - lengths[order]
    bounds = np.union1d(begins[begins < inputs_end], cuts)
    which = np.searchsorted(ends, bounds, side="right")
    stops = np.append(bounds[1:], inputs_end)[: len(bounds)]
    stops += (stops % max_seq_len == 0) & (stops < ends[which])
    return Layout(
        np.append(np.searchsorted(bounds, cuts), len(bounds)),
        order[which],
        bounds - begins[which],
        stops - begins[which],
    )


def one_each(lengths: Integers, order: Integers, max_seq_len: int) -> Layout:
    """Gives each document a sequence of its own.

    Args:
        lengths: Tokens of each document (documents,).
        order: The documents in the order of their sequences (documents,).
        max_seq_len: Inputs of a sequence, T; of a longer document only the first T + 1 tokens are read.

    Returns:
        As many sequences as documents.
    """
    starts = np.zeros(len(order), dtype=np.int64)
    return Layout(np.arange(len(order) + 1), order, starts, np.minimum(lengths[order], max_seq_len + 1))


def best_fit(lengths: Integers, max_seq_len: int) -> Layout:
    """Packs the documents of one shard: none is cut that fits into a sequence.

    A sequence has room for T + 1 tokens, since the last token of a document is no input of anything. A longer document
    gives full sequences of T inputs each from its start on; what is left of it, with the last input repeated as the
    first, is packed like a short document. Pieces are taken from the longest to the shortest; each goes where it leaves
    the least room (best-fit decreasing; Johnson 1973), among equals to the one changed last, into a new one where it
    fits nowhere.

    Args:
        lengths: Tokens of each document (documents,).
        max_seq_len: Inputs of a sequence, T.

    Returns:
        First the full sequences of long documents, then the packed ones in the order in which they were begun. It
        depends on the lengths alone.
    """
    full = np.maximum(0, lengths - 2) // max_seq_len
    long_documents = np.repeat(np.arange(len(lengths)), full)
    chunks = np.arange(len(long_documents)) - np.repeat(np.cumsum(full) - full, full)
    rest = lengths - full * max_seq_len
    bins = _fill_bins(rest, max_seq_len + 1)
    packed = [document for members in bins for document in members]
    sizes = np.array([1] * len(long_documents) + [len(members) for members in bins], dtype=np.int64)
    documents = np.concatenate([long_documents, np.array(packed, dtype=np.int64)])
    starts = np.concatenate([chunks, full[packed] if packed else full[:0]]) * max_seq_len
    stops = np.concatenate([(chunks + 1) * max_seq_len + 1, lengths[packed] if packed else lengths[:0]])
    return Layout(np.concatenate([[0], np.cumsum(sizes)]), documents, starts, stops)


def join_shuffled(layouts: Sequence[Layout], n_documents: Sequence[int], order: Integers) -> Layout:
    """Puts the sequences of several shards into one window, in another order.

    Args:
        layouts: Of each shard.
        n_documents: Documents of each shard.
        order: The sequences of all shards, counted through, in their new order (sequences,).

    Returns:
        The layout of the window.
    """
    first_document = np.cumsum([0, *n_documents[:-1]])
    sizes = np.concatenate([np.diff(layout.first_piece) for layout in layouts])
    begins = np.cumsum(sizes) - sizes
    sizes, begins = sizes[order], begins[order]
    first_piece = np.concatenate([[0], np.cumsum(sizes)])
    pieces = np.arange(first_piece[-1]) + np.repeat(begins - first_piece[:-1], sizes)
    documents = np.concatenate(
        [layout.documents + first for layout, first in zip(layouts, first_document, strict=True)]
    )
    return Layout(
        first_piece,
        documents[pieces],
        np.concatenate([layout.starts for layout in layouts])[pieces],
        np.concatenate([layout.stops for layout in layouts])[pieces],
    )


def _fill_bins(lengths: Integers, capacity: int) -> list[list[int]]:
    """Best-fit decreasing; a document of fewer than two tokens has no target and is left out."""
    bins: list[list[int]] = []
    # For each room that some bin has left, those bins, the last one changed on top; and a word with a bit for each
    # such room.
    with_room: dict[int, list[int]] = {}
    rooms = 0
    for document in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[document])
        if length < 2:
            break
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            stack = with_room[room]
            chosen = stack.pop()
            if not stack:
                rooms &= ~(1 << room)
            bins[chosen].append(document)
        else:
            room, chosen = capacity, len(bins)
            bins.append([document])
        left = room - length
        with_room.setdefault(left, []).append(chosen)
        rooms |= 1 << left
    return bins
