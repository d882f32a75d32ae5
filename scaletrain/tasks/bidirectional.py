"""Rows for models in which every token sees every other of its document: padding must not be seen.

Shapes: B rows, T places of a row.
"""

import numpy as np
import torch
from torch import Tensor

from scaletrain.data.packing import pack
from scaletrain.data.rows import Rows, rounded_width


def padded(rows: Rows) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Places behind a row's last token (B, T), bool."""
    ends = np.array([max(1, row.end) for row in rows.placed])
    return np.asarray(np.arange(rows.tokens.shape[1] - 1) >= ends[:, None])


def separated(rows: Rows) -> dict[str, Tensor | None]:
    """The arrays of rows, with padding as a document of its own at each row's end.

    Args:
        rows: Any.

    Returns:
        ``tokens`` (B, T) int64; ``documents`` (B, T) int32 and ``positions`` (B, T) int64, None where each row is one
        document without padding, or borders are not respected and nothing is padded.
    """
    packed = pack(rows.tokens, rows.placed, rows.borders)
    padding = padded(rows)
    documents, positions = packed.documents, packed.positions
    if padding.any():
        documents = np.zeros(padding.shape, dtype=np.int32) if documents is None else documents
        documents = documents + padding.astype(np.int32)
    return {
        "tokens": torch.from_numpy(packed.tokens),
        "documents": None if documents is None else torch.from_numpy(documents),
        "positions": None if positions is None else torch.from_numpy(positions),
    }


def document_tensors(rows: Rows) -> dict[str, Tensor | None]:
    """Rows of one document each, as far as the longest of them goes.

    Args:
        rows: One document each.

    Returns:
        ``tokens`` (B, T) int64; ``mask`` (B, T) bool, true where a token of the document stands; ``documents`` (B, T)
        int32, 0 for the document and 1 for padding, None where nothing is padded; ``segments`` (B, T) int64, the part
        of each token, None where the corpus has none. T is the same for all rows: a multiple of 16, or the rows' own.
    """
    found = separated(rows)
    width = rows.tokens.shape[1] - 1
    longest = max(max(1, row.end) for row in rows.placed)
    cut = min(width, rounded_width(longest))
    tokens_BT, documents_BT = found["tokens"], found["documents"]
    assert tokens_BT is not None
    parts_BT = None if rows.parts is None else torch.from_numpy(rows.parts[:, :cut]).long()
    return {
        "tokens": tokens_BT[:, :cut],
        "mask": torch.from_numpy(~padded(rows)[:, :cut]),
        "documents": None if documents_BT is None else documents_BT[:, :cut],
        "segments": parts_BT,
    }
