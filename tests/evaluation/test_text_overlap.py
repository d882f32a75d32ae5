"""Figures of texts: cases worked by hand, and the error where a library is missing."""

import math
import subprocess
import sys

import pytest

from scaletrain.evaluation.text_overlap import signatures, summary_metrics, translation_metrics
from scaletrain.monitors import names

GOOD, BAD = "the quick brown fox jumps over the lazy dog", "zzz yyy xxx www"


def test_bleu_is_of_the_corpus_by_its_formula() -> None:
    # Two sentences of 5 and 4 words, together: 8 of 9 words, 5 of 7 pairs, 3 of 5 triples, 1 of 3 quadruples.
    # Nothing is shorter than its reference, so that there is no penalty.
    hypotheses, references = ["a b c d e", "f g h i"], ["a b c d e", "f g x i"]
    precisions = (8 / 9, 5 / 7, 3 / 5, 2 / 3)
    expected = 100 * math.prod(precisions) ** 0.25
    assert translation_metrics(hypotheses, references)[names.EVAL_BLEU] == pytest.approx(expected, rel=1e-9)


def test_a_text_that_is_too_short_pays_for_it() -> None:
    hypothesis, reference = "a b c d", "a b c d e f"
    assert translation_metrics([hypothesis], [reference])[names.EVAL_BLEU] == pytest.approx(100 * math.exp(1 - 6 / 4))


def test_characters_count_where_words_differ() -> None:
    found = translation_metrics(["the cats sat"], ["the cat sits"])
    assert found[names.EVAL_CHRF] > 50
    assert translation_metrics([GOOD], [GOOD]) == {
        names.EVAL_BLEU: pytest.approx(100.0),
        names.EVAL_CHRF: pytest.approx(100.0),
    }


def test_rouge_by_hand() -> None:
    # Words 3 of 4 and 3 of 3; pairs 1 of 3 and 1 of 2; the longest common subsequence "the cat sat", 3 of 4 and 3.
    found = summary_metrics(["the cat now sat"], ["the cat sat"])
    assert found == {
        names.EVAL_ROUGE1: pytest.approx(2 * (3 / 4) * 1 / (3 / 4 + 1)),
        names.EVAL_ROUGE2: pytest.approx(2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2)),
        names.EVAL_ROUGE_L: pytest.approx(2 * (3 / 4) * 1 / (3 / 4 + 1)),
    }


def test_rouge_is_the_mean_over_texts_and_stems_words() -> None:
    assert summary_metrics(["cats", BAD], ["cat", GOOD])[names.EVAL_ROUGE1] == pytest.approx(0.5)


@pytest.mark.parametrize("judge", [translation_metrics, summary_metrics])
def test_empty_texts_and_no_texts(judge: object) -> None:
    assert all(value == 0 for value in judge([""], [GOOD]).values())
    assert all(map(math.isnan, judge([], []).values()))


def test_the_settings_of_each_figure_can_be_told() -> None:
    told = signatures()
    assert set(told) == {*translation_metrics([GOOD], [GOOD]), *summary_metrics([GOOD], [GOOD])}
    assert (
        "tok:13a" in told[names.EVAL_BLEU] and "version:" in told[names.EVAL_BLEU] and "nc:6" in told[names.EVAL_CHRF]
    )
    assert "nrefs:1" in told[names.EVAL_BLEU] and "stem" in told[names.EVAL_ROUGE1]


@pytest.mark.parametrize(
    ("package", "function"), [("sacrebleu", "translation_metrics"), ("rouge_score", "summary_metrics")]
)
def test_a_missing_library_is_named_with_the_extra(package: str, function: str) -> None:
    code = f"""
import sys
sys.modules[{package!r}] = None  # as if it were not installed
from scaletrain.errors import ConfigError
from scaletrain.evaluation import text_overlap
try:
    text_overlap.{function}(["a"], ["a"])
except ConfigError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert package in result.stdout and "scaletrain[metrics]" in result.stdout, result.stderr
