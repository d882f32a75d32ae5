"""Builds a corpus: documents become tokens, tokens become shards, and a manifest says what there is."""

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Literal

import filelock
import numpy as np
import xxhash
from numpy.typing import NDArray
from tokenizers import Tokenizer

from scaletrain.data.atomic import whole_file
from scaletrain.data.corpus import Document
from scaletrain.data.manifest import FILE_NAME, Manifest, TokenizerEntry, totals_of
from scaletrain.data.shard_sink import ShardSink
from scaletrain.data.tokenizer import Borders, find_borders, load_tokenizer, train_byte_level_bpe, vocabulary_rows
from scaletrain.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

SHARD_TOKENS = 1 << 24
VALIDATION_SHARE = 0.02
_TOKENIZER_FILE = "tokenizer.json"
_BATCH_CHARACTERS = 4 << 20  # of text encoded at once: enough to keep all threads busy
_TRAINING_CHARACTERS = 1 << 30  # of text that a tokenizer learns from; its merges hardly change with more


def build_corpus(
    open_documents: Callable[[], Iterable[Document]],
    out: Path,
    tokenizer: Path | int,
    source: str,
    eos_token: str | None = None,
    validation_share: float = VALIDATION_SHARE,
    shard_tokens: int = SHARD_TOKENS,
) -> Path:
    """Makes shards, their indexes, the tokenizer's copy and, when all that is there, the manifest.

    Documents keep their order. Training shuffles them within windows of shards only: where neighbours in the input
    are much alike and the corpus has many more shards than a window, shuffle the input first.

    Args:
        open_documents: Gives all documents anew at each call; called twice where a tokenizer is trained.
        out: The folder of the corpus. One that an interrupted build left is built again.
        tokenizer: A ``tokenizer.json``, or the size of the vocabulary of one to train on the training split.
        source: Where the text comes from, for people.
        eos_token: Name of the token that ends a document, where it is not one of the usual names.
        validation_share: Share of the documents that are held out, in [0, 1), chosen by a hash of their text.
        shard_tokens: Tokens after which a shard is finished.

    Returns:
        Path of the manifest.

    Raises:
        DataError: There is a corpus already, ``out`` cannot be written, or there is nothing to train on.
        ConfigError: A number is out of its range.
    """
    if not 0 <= validation_share < 1:
        raise ConfigError(f"validation_share is {validation_share}, but must be at least 0 and below 1.")
    if shard_tokens < 1:
        raise ConfigError(f"shard_tokens is {shard_tokens}, but must be at least 1.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(out / ".lock", blocking=False):
            if (out / FILE_NAME).exists():
                raise DataError(f"{out} holds a corpus already. Give another --out, or delete that folder first.")
            content = _tokenizer_content(open_documents, tokenizer, validation_share)
            with whole_file(out / _TOKENIZER_FILE) as stream:
                stream.write(content)
            return _write_shards(open_documents(), out, source, eos_token, validation_share, shard_tokens)
    except filelock.Timeout:
        raise DataError(f"Another process is building a corpus in {out}. Wait for it, or give another --out.") from None
    except OSError as error:
        raise DataError(f"The corpus cannot be written to {out}: {error.strerror}. Give another --out.") from None


def is_validation(text: str, share: float) -> bool:
    """Whether a document is held out: decided by its text alone, whatever its name and its neighbours.

    Args:
        text: The document.
        share: Share of all documents that are to be held out.

    Returns:
        Always the same for the same text, so that copies of a document land on one side.
    """
    return xxhash.xxh3_64_intdigest(text.encode()) < share * 2.0**64


def _tokenizer_content(
    open_documents: Callable[[], Iterable[Document]], tokenizer: Path | int, validation_share: float
) -> bytes:
    if isinstance(tokenizer, Path):
        load_tokenizer(tokenizer)
        return tokenizer.read_bytes()
    texts = _texts_to_learn_from(open_documents(), validation_share)
    first = next(texts, None)
    if first is None:
        raise DataError("The corpus is empty: no document is left to train a tokenizer on. Check the input.")
    logger.info("training a tokenizer of %d tokens", tokenizer)
    return train_byte_level_bpe(chain([first], texts), tokenizer).to_str().encode()


def _texts_to_learn_from(documents: Iterable[Document], validation_share: float) -> Iterator[str]:
    characters = 0
    for document in documents:
        if is_validation(document.text, validation_share):
            continue
        yield document.text
        characters += len(document.text)
        if characters > _TRAINING_CHARACTERS:
            logger.info("the tokenizer is trained on the first %s characters", f"{characters:,}")
            return


def _write_shards(
    documents: Iterable[Document],
    out: Path,
    source: str,
    eos_token: str | None,
    validation_share: float,
    shard_tokens: int,
) -> Path:
    tokenizer = load_tokenizer(out / _TOKENIZER_FILE)
    borders = find_borders(tokenizer, eos_token)
    rows = vocabulary_rows(tokenizer)
    dtype: Literal["uint16", "uint32"] = "uint16" if rows <= 2**16 else "uint32"
    with ShardSink(out, "train", shard_tokens) as train, ShardSink(out, "validation", shard_tokens) as validation:
        for document, tokens in _encode(documents, tokenizer, borders, np.dtype(dtype)):
            sink = validation if is_validation(document.text, validation_share) else train
            sink.add(document, tokens)
    splits = {"train": tuple(train.entries), "validation": tuple(validation.entries)}
    if not splits["train"]:
        raise DataError(f"The corpus is empty: {source} gave no document to train on. Check the input.")
    if not splits["validation"] and validation_share > 0:
        logger.warning("no document was held out for validation: with so few, raise the share of %g", validation_share)
    manifest = Manifest(
        folder=out,
        source=source,
        dtype=dtype,
        tokenizer=TokenizerEntry(
            file=_TOKENIZER_FILE,
            sha256=hashlib.sha256((out / _TOKENIZER_FILE).read_bytes()).hexdigest(),
            vocab_size=rows,
            eos_id=borders.eos_id,
            bos_id=borders.bos_id,
        ),
        splits=splits,
        totals={name: totals_of(shards) for name, shards in splits.items()},
    )
    return manifest.write()


def _encode(
    documents: Iterable[Document], tokenizer: Tokenizer, borders: Borders, dtype: np.dtype[np.unsignedinteger]
) -> Iterator[tuple[Document, NDArray[np.unsignedinteger]]]:
    before = [] if borders.bos_id is None else [borders.bos_id]
    for batch in _batches(documents):
        encoded = tokenizer.encode_batch_fast([document.text for document in batch], add_special_tokens=False)
        for document, encoding in zip(batch, encoded, strict=True):
            yield document, np.array([*before, *encoding.ids, borders.eos_id], dtype=dtype)


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
