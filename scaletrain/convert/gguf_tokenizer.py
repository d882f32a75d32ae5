"""A byte-level BPE tokenizer, in the terms of a GGUF file.

llama.cpp, which reads the file, cuts texts into words by code of its own. The file only names which code: so what cuts
the words in ``tokenizer.json`` must be one that has a name there, or texts would get other tokens than in training.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from scaletrain.data.tokenizer import Borders
from scaletrain.errors import ConfigError

logger = logging.getLogger(__name__)

# gguf.TokenType, which is read here before it is known whether gguf is installed.
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5

_GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# What cuts the words, and whether a word that is a token stays whole (ignore_merges): the name of both in GGUF.
_NAMES = {
    (_GPT2_WORDS, False): "gpt-2",
    (_LLAMA3_WORDS, True): "llama-bpe",
    (_LLAMA3_WORDS, False): "smaug-bpe",
    (_QWEN2_WORDS, False): "qwen2",
}
_REMEDY = "Convert to Hugging Face's format instead, which takes any tokenizer."


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says of its tokens.

    Attributes:
        words: Name of the way in which texts are cut into words, ``tokenizer.ggml.pre``.
        tokens: Text of each token, one for each row of the embedding.
        kinds: Kind of each token, a ``gguf.TokenType``.
        merges: Pairs of tokens that become one, the most urgent first.
        eos_id: Token that ends a document.
        bos_id: Token that stands before one.
        adds_bos: Whether the model expects ``bos_id`` before each text.
    """

    words: str
    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    eos_id: int
    bos_id: int
    adds_bos: bool


def read_vocabulary(tokenizer: Tokenizer, borders: Borders, vocab_size: int) -> Vocabulary:
    """Puts a tokenizer in the terms of GGUF.

    Args:
        tokenizer: A byte-level BPE.
        borders: Tokens that mark where a document begins and ends.
        vocab_size: Rows of the model's embedding. Those without a token get one that is marked as unused.

    Returns:
        The vocabulary. Where no token begins a document, the one that ends them stands for it: in training it is what
        precedes a document's first token.

    Raises:
        ConfigError: The tokenizer is of another kind, cuts texts in a way that GGUF has no name for, or has more tokens
            than the model.
    """
    content = json.loads(tokenizer.to_str())
    model = content["model"]
    _check_model(model)
    _check_normalizer(content["normalizer"])
    words = _name_of_words(content["pre_tokenizer"], bool(model.get("ignore_merges")))
    tokens, kinds = _tokens(tokenizer, vocab_size)
    return Vocabulary(
        words=words,
        tokens=tokens,
        kinds=kinds,
        merges=[_merge(pair) for pair in model["merges"]],
        eos_id=borders.eos_id,
        bos_id=borders.eos_id if borders.bos_id is None else borders.bos_id,
        adds_bos=borders.bos_id is not None,
    )


def _check_model(model: Mapping[str, Any]) -> None:
    if model["type"] != "BPE" or model.get("byte_fallback"):
        kind = "BPE with byte_fallback (as made from SentencePiece)" if model["type"] == "BPE" else model["type"]
        raise ConfigError(f"The tokenizer's model is {kind}, but to_gguf writes byte-level BPE alone. {_REMEDY}")
    for option in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(option):
            raise ConfigError(
                f"The tokenizer's model has {option} = {model[option]!r}, which GGUF cannot say. {_REMEDY}"
            )


def _check_normalizer(normalizer: Mapping[str, Any] | None) -> None:
    if normalizer is None:
        return
    kinds = [part["type"] for part in normalizer.get("normalizers", [normalizer])]
    if any(kind != "NFC" for kind in kinds):
        raise ConfigError(
            f"The tokenizer has the normalizer {', '.join(kinds)}, but llama.cpp takes texts as they are. {_REMEDY}"
        )
    logger.warning("llama.cpp does not bring texts into the form NFC as this tokenizer does: give it texts in NFC.")


def _name_of_words(pre_tokenizer: Mapping[str, Any] | None, ignore_merges: bool) -> str:
    parts = [] if pre_tokenizer is None else pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    patterns = [_pattern(part) for part in parts]
    if not parts or parts[-1]["type"] != "ByteLevel":
        raise ConfigError(
            f"The tokenizer's pre_tokenizer is {json.dumps(pre_tokenizer)}, but to_gguf writes byte-level BPE alone. "
            f"{_REMEDY}"
        )
    if parts[-1].get("add_prefix_space"):
        raise ConfigError(
            "The tokenizer's ByteLevel has add_prefix_space = true, but llama.cpp puts no space before a text. "
            + _REMEDY
        )
    cutting = [pattern for pattern in patterns if pattern is not None]
    name = _NAMES.get((cutting[0], ignore_merges)) if len(cutting) == 1 else None
    if name is None:
        raise ConfigError(
            f"The tokenizer cuts texts by {' then '.join(cutting) or 'nothing'}, with ignore_merges = "
            f"{str(ignore_merges).lower()}; to_gguf knows the ways of {', '.join(sorted(_NAMES.values()))}. {_REMEDY}"
        )
    return name


def _pattern(part: Mapping[str, Any]) -> str | None:
    """What a step of the pre-tokenizer cuts texts by, or None if it does not cut."""
    if part["type"] == "ByteLevel":
        return _GPT2_WORDS if part.get("use_regex", True) else None
    if (
        part["type"] == "Split"
        and "Regex" in part["pattern"]
        and (part["behavior"], part["invert"]) == ("Isolated", False)
    ):
        return str(part["pattern"]["Regex"])
    return json.dumps(part)


def _merge(pair: list[str] | str) -> str:
    parts = pair.split(" ") if isinstance(pair, str) else pair
    if len(parts) != 2 or any(" " in part for part in parts):
        raise ConfigError(
            f"The tokenizer's merge {pair!r} is not of a byte-level BPE, which writes no spaces. {_REMEDY}"
        )
    return " ".join(parts)


def _tokens(tokenizer: Tokenizer, vocab_size: int) -> tuple[list[str], list[int]]:
    names = {token: name for name, token in tokenizer.get_vocab(with_added_tokens=True).items()}
    if max(names) >= vocab_size:
        raise ConfigError(
            f"The tokenizer has tokens up to {max(names)}, but model.vocab_size is {vocab_size}. "
            f"Give the tokenizer that the model was trained with."
        )
    added, taken = tokenizer.get_added_tokens_decoder(), set(names.values())
    tokens, kinds = [], []
    for token in range(vocab_size):
        if token in added:
            tokens.append(added[token].content)
            kinds.append(CONTROL if added[token].special else USER_DEFINED)
        elif token in names:
            tokens.append(names[token])
            kinds.append(NORMAL)
        else:
            name = f"[PAD{token}]"
            while name in taken:  # llama.cpp ends over two tokens of one name
                name = f"[{name}]"
            tokens.append(name)
            kinds.append(UNUSED)
    return tokens, kinds
