"""Rows of documents as they come from the shards, and what becomes of them: the tensors of a micro batch.

Shapes: B rows, T places of a row, M values of a document.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scaletrain.data.packing import IGNORED, Row, pack


@dataclass(frozen=True)
class Rows:
    """The rows of a micro batch before a task makes tensors of them.

    Attributes:
        tokens: Tokens (B, T + 1), of the stored type; the end-of-text token where a row has none.
        placed: Where the pieces of each row lie (B).
        sequences: Index of each row in the run (B); ``FILLING`` for a row that weighs nothing.
        borders: Whether attention and positions start anew at each document.
        parts: Part of each token, 0 or 1 (B, T + 1), uint8; None where the corpus has none.
        values: Of each row's document (B, M), float64; None where the corpus has none, or rows hold several documents.
        others: For each row another one, half a window away, where a task reads them.
    """

    tokens: NDArray[np.unsignedinteger]
    placed: Sequence[Row]
    sequences: Sequence[int]
    borders: bool = True
    parts: NDArray[np.uint8] | None = None
    values: NDArray[np.float64] | None = None
    others: "Rows | None" = None


class Collated(NamedTuple):
    """What a task makes of rows.

    Attributes:
        inputs: Arguments of the task's module by name, on the CPU; None for one that is left out.
        targets_B: What each row is divided by and counts for: its targets (B,), int64; 0 for a row of filling.
    """

    inputs: dict[str, Tensor | None]
    targets_B: Tensor


Collate = Callable[[Rows], Collated]
"""Makes tensors of rows: a pure function of them, since every row may be made by any worker of any rank."""


class MicroBatch(TypedDict):
    """What one forward pass takes, and what is told of it.

    ``inputs`` and ``targets`` (B,): see ``Collated``. ``sources`` (B,) int64: the source of each row, 0 for one of
    filling. ``sequences`` (B,) int64: its index in the run, ``FILLING`` for one of filling. ``checksum``: sum over the
    sequences modulo 2**64, see ``packing.row_checksum``.
    """

    inputs: dict[str, Tensor | None]
    targets: Tensor
    sources: Tensor
    sequences: Tensor
    checksum: int


_WIDTH_STEP = 16


def rounded_width(longest: int) -> int:
    """Places of rows that are as long as they need to be.

    Few different widths: so few graphs are compiled, and kernels meet shapes that suit them.

    Args:
        longest: Tokens of the longest row.

    Returns:
        A multiple of 16, at least 16.
    """
    return -(-max(1, longest) // _WIDTH_STEP) * _WIDTH_STEP


def next_tokens(rows: Rows) -> Collated:
    """Each token is predicted from those before it in its document.

    Args:
        rows: Of documents.

    Returns:
        ``tokens`` and ``targets`` (B, T) int64, the latter ``IGNORED`` where nothing is predicted; ``documents`` (B, T)
        int32 and ``positions`` (B, T) int64, both None where every row is one document from its first place on, or
        borders are not respected: plain causal attention.
    """
    packed = pack(rows.tokens, rows.placed, rows.borders)
    targets_BT = torch.from_numpy(packed.targets)
    documents, positions = packed.documents, packed.positions
    inputs = {
        "tokens": torch.from_numpy(packed.tokens),
        "targets": targets_BT,
        "documents": None if documents is None else torch.from_numpy(documents),
        "positions": None if positions is None else torch.from_numpy(positions),
    }
    return Collated(inputs, (targets_BT != IGNORED).sum(1))
