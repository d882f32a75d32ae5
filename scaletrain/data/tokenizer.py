"""Byte-level BPE tokenizers: trained, loaded, and measured in bytes."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from scaletrain.errors import ConfigError, DataError

END_OF_TEXT = "<|endoftext|>"
_USUAL_EOS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")
_BYTES = 256


@dataclass(frozen=True)
class Borders:
    """The tokens that mark where a document ends, and where it begins if the tokenizer marks that."""

    eos_id: int
    bos_id: int | None


def train_byte_level_bpe(texts: Iterable[str], vocab_size: int, special_tokens: Sequence[str] = ()) -> Tokenizer:
    """Trains a byte-level BPE with GPT-2's way of cutting text into words.

    The same texts in the same order give the same tokenizer.

    Args:
        texts: What to learn from.
        vocab_size: Tokens to make, the 256 bytes and the special ones among them; fewer where the texts are short.
        special_tokens: Names of special tokens besides the end of text.

    Returns:
        The tokenizer. Every text is got back exactly by decoding.

    Raises:
        ConfigError: The vocabulary is too small to hold all bytes, or a special token has no name of its own.
    """
    special = [END_OF_TEXT, *special_tokens]
    if len(set(special)) < len(special) or "" in special:
        raise ConfigError(f"The special tokens are {', '.join(special)}: each needs a name of its own.")
    if vocab_size < _BYTES + len(special):
        raise ConfigError(
            f"The vocabulary of the tokenizer is {vocab_size}, but {_BYTES} bytes and {', '.join(special)} need "
            f"{_BYTES + len(special)}. Raise it."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.encode_special_tokens = True
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """Loads a ``tokenizer.json``.

    Args:
        path: The file.

    Returns:
        The tokenizer, as ``parse_tokenizer`` makes it.

    Raises:
        DataError: The file cannot be read or is no tokenizer.
    """
    try:
        return parse_tokenizer(path.read_bytes(), str(path))
    except OSError as error:
        raise DataError(f"The tokenizer {path} cannot be read: {error.strerror}. Check the path.") from None


def parse_tokenizer(content: bytes, origin: str) -> Tokenizer:
    """Makes a tokenizer of the content of a ``tokenizer.json``.

    Args:
        content: The file's content.
        origin: Where it came from, for messages.

    Returns:
        The tokenizer, set so that the name of a special token in a text is text like any other: no document can
        pretend to end.

    Raises:
        DataError: It is no tokenizer.
    """
    try:
        tokenizer = Tokenizer.from_str(content.decode())
    except Exception as error:  # the library raises plain Exception
        raise DataError(f"{origin} is not a tokenizer.json of the tokenizers library: {error}") from None
    tokenizer.encode_special_tokens = True
    # A file may ask for both; here a document keeps all its tokens and gets no others.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def find_borders(tokenizer: Tokenizer, eos_token: str | None = None) -> Borders:
    """Finds the tokens that mark the borders of documents.

    Args:
        tokenizer: Any tokenizer.
        eos_token: Name of the token that ends a document; one of the usual names by default.

    Returns:
        Its borders; the first has an id only if the tokenizer itself puts a token before a text.

    Raises:
        DataError: There is no such token.
    """
    candidates = _USUAL_EOS if eos_token is None else (eos_token,)
    ids = (tokenizer.token_to_id(name) for name in candidates)
    eos_id = next((token for token in ids if token is not None), None)
    if eos_id is None:
        raise DataError(
            f"The tokenizer has no token {' or '.join(candidates)} to end a document with. Name one with --eos_token."
        )
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    marked = tokenizer.encode("a", add_special_tokens=True).ids
    return Borders(eos_id, marked[0] if marked and marked[: len(plain)] != plain else None)


def read_borders(path: Path) -> Borders:
    """Reads the border tokens that a run keeps of its corpus.

    Args:
        path: The run's ``corpus.json``.

    Returns:
        The borders.

    Raises:
        DataError: The file is missing or damaged.
    """
    try:
        content = json.loads(path.read_text())
        return Borders(content["eos_id"], content["bos_id"])
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path} cannot be read: {error}. Start the run again, which writes it.") from None


def prompt_tokens(tokenizer: Tokenizer, prompt: str, borders: Borders) -> list[int]:
    """Tokens of a text that begins a document, as those that a model was trained on.

    Args:
        tokenizer: The tokenizer.
        prompt: The text.
        borders: Tokens that mark where a document begins and ends.

    Returns:
        The tokens, behind the one that begins a document where there is one.
    """
    tokens: list[int] = tokenizer.encode(prompt, add_special_tokens=False).ids
    return tokens if borders.bos_id is None else [borders.bos_id, *tokens]


def added_names(tokenizer: Tokenizer) -> set[str]:
    """Names of the tokens that a tokenizer knows besides its vocabulary, such as the special ones."""
    return {token.content for token in tokenizer.get_added_tokens_decoder().values()}


def vocabulary_rows(tokenizer: Tokenizer) -> int:
    """Largest id plus one: the rows that an embedding needs, also where ids are left out."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def token_byte_lengths(tokenizer: Tokenizer) -> NDArray[np.int32]:
    """Bytes of text that each token stands for, from which bits per byte are computed.

    Args:
        tokenizer: A byte-level tokenizer.

    Returns:
        Array (largest id + 1,), int32; 0 for special tokens and ids without a token. The lengths of a text's
        tokens sum exactly to its length in UTF-8.

    Raises:
        DataError: The tokenizer is not byte-level.
    """
    if not _is_byte_level(tokenizer):
        raise DataError(
            "The tokenizer is not byte-level, so that the bytes of a token are not defined. Use a byte-level BPE, or "
            "train one with tools/make_shards.py --train_tokenizer."
        )
    lengths = np.zeros(vocabulary_rows(tokenizer), dtype=np.int32)
    # In the vocabulary each byte is written as one character of a printable alphabet.
    for name, token in tokenizer.get_vocab(with_added_tokens=False).items():
        lengths[token] = len(name)
    for token, added in tokenizer.get_added_tokens_decoder().items():
        lengths[token] = 0 if added.special else len(added.content.encode())
    return lengths


def _is_byte_level(tokenizer: Tokenizer) -> bool:
    decoder = json.loads(tokenizer.to_str()).get("decoder") or {}
    return any(part.get("type") == "ByteLevel" for part in [decoder, *decoder.get("decoders", [])])
