"""What is done to a batch of documents, in a worker process or here: rules, replacements, signatures, tokens."""

import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scaletrain.corpus.duplicates import band_keys, digest_of
from scaletrain.corpus.encoding import ExamplePlan, encode_examples
from scaletrain.corpus.filters import broken_rule
from scaletrain.corpus.replacements import replace_private
from scaletrain.corpus.rules import CleaningRules
from scaletrain.corpus.splits import TRAIN, VALIDATION, is_validation
from scaletrain.data.tokenizer import Borders, load_tokenizer

_NO_BORDERS = Borders(0, None)  # of a plan without a tokenizer


@dataclass(frozen=True)
class WorkPlan:
    """What a worker does with every document; small, since it travels with every batch.

    Attributes:
        rules: What is dropped and what is replaced.
        validation_share: Share of the documents that are held out.
        tokenizer: A ``tokenizer.json``, or None where no tokens are wanted.
        borders: Tokens before and after each document.
        dtype: Type of the tokens, ``uint16`` or ``uint32``.
        want_text: Whether the text is wanted back, as the rules left it.
        examples: How texts that stand for examples are encoded; None where texts are texts.
    """

    rules: CleaningRules
    validation_share: float
    tokenizer: Path | None = None
    borders: Borders = _NO_BORDERS
    dtype: str = "uint16"
    want_text: bool = False
    examples: ExamplePlan | None = None


class Batch(NamedTuple):
    """Documents to work on.

    Attributes:
        ordinals: Number of each document in the input.
        texts: The documents.
        splits: Where each belongs; None where its text decides.
        finished: For each split, the ordinal below which no tokens are wanted.
    """

    ordinals: list[int]
    texts: list[str]
    splits: list[str | None]
    finished: dict[str, int]


class Worked(NamedTuple):
    """What became of a document.

    Attributes:
        removed_by: The rule that it broke, in which case nothing else is set.
        split: Where it belongs.
        n_bytes: Of its text in UTF-8, as the rules left it; of the texts within an example.
        n_tokens: Of its tokens, those that mark borders included; 0 where none were made.
        tokens: These as the content of an npy file, empty where none were made.
        text: The text, where it is wanted.
        bands: Keys by which near copies are found, where they are looked for.
        replaced: Placeholders put in, by placeholder; None where there are none.
        digest: Of the text, where something was replaced in it and exact copies are looked for.
        values: Of an example.
        cut: Names of the texts of an example that were longer than they may be.
        problem: Why an example cannot be encoded.
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
    values: tuple[float, ...] = ()
    cut: tuple[str, ...] = ()
    problem: str | None = None


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
    for text, given in zip(batch.texts, batch.splits, strict=True):
        cleaned, replaced = replace_private(text, plan.rules.replace)
        rule = broken_rule(cleaned, plan.rules)
        texts.append(cleaned)
        if rule is not None:
            results.append(Worked(rule))
            continue
        split = given or (VALIDATION if is_validation(cleaned, plan.validation_share) else TRAIN)
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
    if plan.tokenizer is not None and plan.examples is not None:
        _add_examples(plan, plan.examples, plan.tokenizer, texts, results)
    elif plan.tokenizer is not None:
        _add_tokens(plan, plan.tokenizer, batch, texts, results)
    return results


def _add_tokens(plan: WorkPlan, tokenizer: Path, batch: Batch, texts: list[str], results: list[Worked]) -> None:
    wanted = [
        place
        for place, (ordinal, result) in enumerate(zip(batch.ordinals, results, strict=True))
        if result.removed_by is None and ordinal >= batch.finished.get(result.split, 0)
    ]
    encoded = _tokenizer(tokenizer).encode_batch_fast([texts[place] for place in wanted], add_special_tokens=False)
    before = [] if plan.borders.bos_id is None else [plan.borders.bos_id]
    for place, encoding in zip(wanted, encoded, strict=True):
        tokens = np.array([*before, *encoding.ids, plan.borders.eos_id], dtype=plan.dtype)
        results[place] = results[place]._replace(n_tokens=len(tokens), tokens=_as_npy(tokens))


def _add_examples(
    plan: WorkPlan, examples: ExamplePlan, tokenizer: Path, texts: list[str], results: list[Worked]
) -> None:
    """Also of those that are in shards already: what the report counts is found by encoding."""
    encoded = encode_examples(examples, tokenizer, plan.borders, np.dtype(plan.dtype), texts)
    for place, found in enumerate(encoded):
        results[place] = results[place]._replace(
            n_bytes=found.n_bytes,
            n_tokens=len(found.words),
            tokens=_as_npy(found.words),
            values=found.values,
            cut=found.cut,
            problem=found.problem,
        )


_tokenizer = cache(load_tokenizer)


def _as_npy(tokens: NDArray[np.unsignedinteger]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, tokens, version=(1, 0), allow_pickle=False)
    return stream.getvalue()
