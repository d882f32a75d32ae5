"""Figures of generated texts beside reference texts, by the libraries that published numbers come from."""

import math
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import version
from typing import Any

from scaletrain.errors import ConfigError
from scaletrain.monitors import names

_ROUGE = {"rouge1": names.EVAL_ROUGE1, "rouge2": names.EVAL_ROUGE2, "rougeL": names.EVAL_ROUGE_L}


def translation_metrics(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Judges translations by the words and characters that they share with one reference each.

    Args:
        hypotheses: The generated texts, plain and without tokenization.
        references: The right text for each.

    Returns:
        ``eval/bleu`` (of the whole set, not a mean over sentences) and ``eval/chrf``, each 0 to 100; NaN of no texts.

    Raises:
        ConfigError: sacrebleu is not installed.

    Source:
        Post 2018, "A Call for Clarity in Reporting BLEU Scores" (arXiv 1804.08771); Popović 2015, "chrF".
    """
    scorers = _sacrebleu_scorers()
    if not hypotheses:
        return dict.fromkeys(scorers, math.nan)
    return {name: float(scorer.corpus_score(hypotheses, [references]).score) for name, scorer in scorers.items()}


def summary_metrics(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Judges summaries by the words that they share with one reference each.

    The library takes letters from a to z and digits for words: figures of another script say nothing.

    Args:
        hypotheses: The generated texts.
        references: The right text for each.

    Returns:
        ``eval/rouge1``, ``eval/rouge2`` and ``eval/rougeL``: means of the F1 of single words, pairs of words and the
        longest common subsequence, each 0 to 1; NaN of no texts.

    Raises:
        ConfigError: rouge_score is not installed.

    Source:
        Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries"; words are stemmed, as in published numbers.
    """
    rouge_scorer = _optional("rouge_score.rouge_scorer")
    if not hypotheses:
        return dict.fromkeys(_ROUGE.values(), math.nan)
    scorer = rouge_scorer.RougeScorer(list(_ROUGE), use_stemmer=True)
    scores = [scorer.score(reference, text) for text, reference in zip(hypotheses, references, strict=True)]
    return {name: math.fsum(one[key].fmeasure for one in scores) / len(scores) for key, name in _ROUGE.items()}


def signatures() -> dict[str, str]:
    """What has to be told with the figures of both functions, so that others can compare theirs.

    Returns:
        Settings and version by the name of the metric.

    Raises:
        ConfigError: sacrebleu or rouge_score is not installed.
    """
    told = {}
    for name, scorer in _sacrebleu_scorers().items():
        scorer.corpus_score(["a"], [["a"]])  # a signature knows the number of references only after a use
        told[name] = str(scorer.get_signature())
    _optional("rouge_score.rouge_scorer")
    rouge = f"F1|mean|stem:porter|version:{version('rouge_score')}"
    return told | dict.fromkeys(_ROUGE.values(), rouge)


def _sacrebleu_scorers() -> Mapping[str, Any]:
    metrics = _optional("sacrebleu.metrics")
    return {names.EVAL_BLEU: metrics.BLEU(), names.EVAL_CHRF: metrics.CHRF()}


def _optional(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise ConfigError(
            f"The package {package} is not installed, which tells these figures. Install it: pip install "
            "'scaletrain[metrics]'."
        ) from None
