"""Pairs of text for the prediction of the next sentence: half of them from one document, half from two.

Shapes: B rows, T places of a row.

Source: Devlin et al. 2018, "BERT", section 3.1, task 2.
"""

import dataclasses

import numpy as np
import torch
from torch import Tensor

from scaletrain.config.batch_plan import FILLING
from scaletrain.data.rows import Rows
from scaletrain.data.shuffle import fold

_PAIRING = 12
"""What noise is for: each kind draws from a stream of its own."""


def pair_sentences(rows: Rows, seed: int) -> tuple[Rows, dict[str, Tensor | None]]:
    """Cuts each document in two, and gives half of the rows a part of another document behind the cut.

    Args:
        rows: One document each, with another one beside each.
        seed: Of the noise.

    Returns:
        The rows so changed; and ``segments`` (B, T) int64, 1 from the cut on, and ``follows`` (B,) int64, 1 where the
        second part is the document's own.
    """
    assert rows.others is not None  # rows are read with others for this task
    tokens, placed = rows.tokens.copy(), list(rows.placed)
    width = tokens.shape[1] - 1
    segments = np.zeros((len(tokens), width), dtype=np.int64)
    follows = np.ones(len(tokens), dtype=np.int64)
    for row, sequence in enumerate(rows.sequences):
        end, other_end = min(width, placed[row].end), rows.others.placed[row].end
        if sequence == FILLING or end < 2:
            continue
        noise = np.random.Generator(np.random.Philox(fold(seed, _PAIRING, sequence)))
        cut = int(noise.integers(max(1, end // 4), max(2, 3 * end // 4 + 1)))
        begin = int(noise.integers(0, other_end // 2 + 1))
        taken = rows.others.tokens[row, begin:other_end][: end - cut]
        segments[row, cut:] = 1
        if noise.random() < 0.5 and len(taken):
            follows[row] = 0
            tokens[row, cut : cut + len(taken)] = taken
            placed[row] = placed[row]._replace(end=cut + len(taken))
    changed = dataclasses.replace(rows, tokens=tokens, placed=placed)
    return changed, {"segments": torch.from_numpy(segments), "follows": torch.from_numpy(follows)}
