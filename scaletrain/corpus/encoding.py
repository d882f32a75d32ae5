"""Makes tokens, parts and values of examples."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from scaletrain.corpus.examples import Format
from scaletrain.corpus.meaning import Meaning
from scaletrain.data.chat import ChatEncoder, ChatTemplate
from scaletrain.data.parts import join_parts
from scaletrain.data.tokenizer import Borders, load_tokenizer
from scaletrain.errors import DataError

# The texts of an example behind one another; of each the part that its tokens are.
_TEXTS: dict[Format, tuple[str, ...]] = {
    "pairs": ("source", "target"),
    "classes": ("text", "text_pair"),
    "numbers": ("text", "text_pair"),
}


@dataclass(frozen=True)
class ExamplePlan:
    """How examples are encoded; it travels to the workers.

    Attributes:
        format: What an example is.
        meaning: What the manifest will say.
        chat_template: The template of conversations, and its name for messages.
        limits: Most tokens of the first and the second text of an example; None for no limit.
    """

    format: Format
    meaning: Meaning
    chat_template: tuple[str, str] | None = None
    limits: tuple[int | None, int | None] = (None, None)


class Encoded(NamedTuple):
    """What became of an example.

    Attributes:
        words: Its tokens (n,), with their parts where the corpus has parts.
        values: Its values.
        n_bytes: Of its texts in UTF-8.
        cut: Names of the texts that were longer than they may be.
        problem: Why it cannot be encoded, in which case nothing else is set.
    """

    words: NDArray[np.unsignedinteger]
    values: tuple[float, ...] = ()
    n_bytes: int = 0
    cut: tuple[str, ...] = ()
    problem: str | None = None


def encode_examples(
    plan: ExamplePlan, tokenizer: Path, borders: Borders, dtype: np.dtype[np.unsignedinteger], examples: Sequence[str]
) -> list[Encoded]:
    """Encodes a batch of examples.

    Args:
        plan: How.
        tokenizer: A ``tokenizer.json``.
        borders: Tokens that begin and end a document.
        dtype: Of the words.
        examples: Canonical JSON.

    Returns:
        What became of each, in their order.
    """
    records = [json.loads(example) for example in examples]
    if plan.chat_template is not None:
        encoder = _chat_encoder(*plan.chat_template, tokenizer, borders)
        return [_encode_chat(encoder, record, dtype) for record in records]
    names = _TEXTS[plan.format]
    texts = [record[name] for record in records for name in names if name in record]
    encodings = iter(_tokenizer(tokenizer).encode_batch_fast(texts, add_special_tokens=False))
    before = [] if borders.bos_id is None else [borders.bos_id]
    encoded = []
    for record in records:
        tokens, parts, n_bytes, cut = list(before), [0] * len(before), 0, []
        for part, (name, limit) in enumerate(zip(names, plan.limits, strict=True)):
            if name not in record:
                continue
            ids = next(encodings).ids
            if limit is not None and len(ids) > limit:
                cut.append(name)
            n_bytes += len(record[name].encode())
            tokens += [*ids[:limit], borders.eos_id]
            parts += [part] * (len(tokens) - len(parts))
        words = join_parts(tokens, parts, dtype) if plan.meaning.parts else np.array(tokens, dtype=dtype)
        encoded.append(Encoded(words, plan.meaning.values_of(record), n_bytes, tuple(cut)))
    return encoded


def _encode_chat(encoder: ChatEncoder, record: Any, dtype: np.dtype[np.unsignedinteger]) -> Encoded:
    try:
        chat = encoder.encode(record["messages"])
    except DataError as error:
        return Encoded(np.empty(0, dtype=dtype), problem=str(error))
    return Encoded(join_parts(chat.tokens, chat.parts, dtype), n_bytes=chat.n_bytes)


_tokenizer = cache(load_tokenizer)


@cache
def _chat_encoder(template: str, name: str, tokenizer: Path, borders: Borders) -> ChatEncoder:
    loaded: Tokenizer = _tokenizer(tokenizer)
    return ChatEncoder(ChatTemplate(template, name), loaded, borders)
