"""Rows as a dataset would hand them over, drawn at random."""

from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

from scaletrain.config.batch_plan import FILLING
from scaletrain.config.schema import LossConfig, ModelConfig, TaskConfig
from scaletrain.data.corpus_facts import CorpusFacts
from scaletrain.data.manifest import Manifest, TokenizerEntry
from scaletrain.data.packing import Row
from scaletrain.data.rows import Rows
from scaletrain.data.tokenizer import train_byte_level_bpe
from scaletrain.tasks.task import TaskSetting

TEXT = ["the quick brown fox jumps over the lazy dog, and then some more words follow each other"] * 4
EOS = 0


def tokenizer() -> Tokenizer:
    """A byte-level one with words of several tokens."""
    return train_byte_level_bpe(TEXT, vocab_size=300)


class OneReader:
    """Where a task looks up its corpus: the manifest is real, and no shard is read."""

    def __init__(self, **fields: object) -> None:
        vocab_size = tokenizer().get_vocab_size()
        entry = TokenizerEntry(file="tokenizer.json", sha256="0", vocab_size=vocab_size, eos_id=EOS)
        content = {"location": "corpus", "source": "made", "dtype": "uint16", "splits": {}, "totals": {}}
        self.manifest = Manifest(**content, tokenizer=entry, **fields)


def setting(task: dict[str, object], model: dict[str, object], **manifest: object) -> TaskSetting:
    """What a task is made of."""
    sizes: dict[str, object] = {"vocab_size": 320, "d_model": 16, "n_layers": 1, "n_heads": 2, "max_seq_len": 64}
    return TaskSetting(
        TaskConfig(**task),
        LossConfig(),
        ModelConfig(**(sizes | model)),
        CorpusFacts.of(OneReader(**manifest).manifest),
        tokenizer(),
    )


def rows(
    lengths: Sequence[Sequence[int]], width: int, sequences: Sequence[int] | None = None, seed: int = 0, **more: object
) -> Rows:
    """Rows of documents of those lengths; a row's tokens depend on its index alone.

    Args:
        lengths: Of the pieces of each row.
        width: Inputs of a row.
        sequences: Their indices; 0, 1, ... by default.
        seed: Of the tokens.
        **more: Further fields.

    Returns:
        The rows; each document ends with the token that ends it.
    """
    sequences = range(len(lengths)) if sequences is None else sequences
    tokens = np.full((len(lengths), width + 1), EOS, dtype=np.uint16)
    placed = []
    for row, (pieces, sequence) in enumerate(zip(lengths, sequences, strict=True)):
        ends = np.cumsum(pieces)
        if sequence == FILLING:
            placed.append(Row((0,), 1))
            continue
        drawn = np.random.default_rng((seed, sequence)).integers(1, 300, width + 1)
        tokens[row, : ends[-1]] = drawn[: ends[-1]]
        tokens[row, ends - 1] = EOS
        placed.append(Row([0, *ends[:-1].tolist()], int(ends[-1])))
    return Rows(tokens, placed, list(sequences), **more)
