"""What is done to a batch of documents, in a worker process or here: rules, replacements, signatures, tokens."""

import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scaletrain.corpus.duplicates import band_keys, digest_of
from scaletrain.corpus.filters import broken_rule
from scaletrain.corpus.replacements import replace_private
from scaletrain.corpus.rules import CleaningRules
from scaletrain.corpus.splits import TRAIN, VALIDATION, is_validation
from scaletrain.data.tokenizer import load_tokenizer


@dataclass(frozen=True)
class WorkPlan:
    """What a worker does with every document; small, since it travels with every batch.

    Attributes:
        rules: What is dropped and what is replaced.
        validation_share: Share of the documents that are held out.
        tokenizer: A ``tokenizer.json``, or None where no tokens are wanted.
        bos_id: Token before each document, if any.
        eos_id: Token after each document.
        dtype: Type of the tokens, ``uint16`` or ``uint32``.
        want_text: Whether the text is wanted back, as the rules left it.
    """

    rules: CleaningRules
    validation_share: float
    tokenizer: Path | None = None
    bos_id: int | None = None
    eos_id: int = 0
    dtype: str = "uint16"
    want_text: bool = False


class Batch(NamedTuple):
    """Documents to work on.

    Attributes:
        ordinals: Number of each document in the input.
        texts: The documents.
        finished: For each split, the ordinal below which no tokens are wanted.
    """

    ordinals: list[int]
    texts: list[str]
    finished: dict[str, int]


class Worked(NamedTuple):
    """What became of a document.

    Attributes:
        removed_by: The rule that it broke, in which case nothing else is set.
        split: Where it belongs.
        n_bytes: Of its text in UTF-8, as the rules left it.
        n_tokens: Of its tokens, those that mark borders included; 0 where none were made.
        tokens: These as the content of an npy file, empty where none were made.
        text: The text, where it is wanted.
        bands: Keys by which near copies are found, where they are looked for.
        replaced: Placeholders put in, by placeholder; None where there are none.
        digest: Of the text, where something was replaced in it and exact copies are looked for.
    """

    removed_by: str | None
    split: str = TRAIN
    n_bytes: int = 0
    n_tokens: int = 0
    tokens: bytes = b""
    text: str | None = None
    bands: NDArray[np.uint64] | None = None
    replaced: dict[str, int] | None = None
    digest: int | None = None


def work(plan: WorkPlan, batch: Batch) -> list[Worked]:
    """Works on a batch; each document's result depends on it and the plan alone.

    Args:
        plan: What is done.
        batch: The documents.

    Returns:
        What became of each, in their order.
    """
    texts: list[str] = []
    results: list[Worked] = []
    for text in batch.texts:
        cleaned, replaced = replace_private(text, plan.rules.replace)
        rule = broken_rule(cleaned, plan.rules)
        texts.append(cleaned)
        if rule is not None:
            results.append(Worked(rule))
            continue
        split = VALIDATION if is_validation(cleaned, plan.validation_share) else TRAIN
        content = cleaned.encode()
        results.append(
            Worked(
                None,
                split,
                len(content),
                text=cleaned if plan.want_text else None,
                bands=band_keys(cleaned, plan.rules.duplicates) if plan.rules.duplicates.near else None,
                replaced=dict(replaced) or None,
                digest=digest_of(content) if replaced and plan.rules.duplicates.exact else None,
            )
        )
    if plan.tokenizer is not None:
        wanted = [
            place
            for place, (ordinal, result) in enumerate(zip(batch.ordinals, results, strict=True))
            if result.removed_by is None and ordinal >= batch.finished.get(result.split, 0)
        ]
        encoded = _tokenizer(plan.tokenizer).encode_batch_fast(
            [texts[place] for place in wanted], add_special_tokens=False
        )
        before = [] if plan.bos_id is None else [plan.bos_id]
        for place, encoding in zip(wanted, encoded, strict=True):
            tokens = np.array([*before, *encoding.ids, plan.eos_id], dtype=plan.dtype)
            results[place] = results[place]._replace(n_tokens=len(tokens), tokens=_as_npy(tokens))
    return results


_tokenizer = cache(load_tokenizer)


def _as_npy(tokens: NDArray[np.unsignedinteger]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, tokens, version=(1, 0), allow_pickle=False)
    return stream.getvalue()
