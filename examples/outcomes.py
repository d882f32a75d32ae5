"""What examples came to, as one table beside simple methods."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Columns of the table, as far as there is anything in them.
_ACCURACY, _ERROR = ("accuracy", "macro_f1"), ("mse", "r2", "spearman")
_OVERLAP, _COST = ("bleu", "chrf", "rouge1", "rouge2", "rougeL"), ("perplexity", "bits_per_byte", "masked_accuracy")
_SHOWN = (*_ACCURACY, *_ERROR, *_OVERLAP, *_COST)
_EFFORT = ("steps", "epochs", "training", "time of a core")


@dataclass(frozen=True)
class Outcome:
    """What an example came to.

    Attributes:
        name: Of the example.
        subject: Its file of records.
        method: What it is.
        figures: On the split that it is judged by, without the prefix of the metrics' names.
        documents_split: That split.
        steps: Global batches of the training.
        epochs: Passes over the training split.
        train_s: Seconds of the training, from the command's start to its end.
        train_cpu_s: Seconds of processor time in them, over all cores: what a busy machine does not change much.
        evaluate_s: Seconds of the evaluation.
    """

    name: str
    subject: str
    method: str
    figures: dict[str, float]
    documents_split: str
    steps: int
    epochs: float
    train_s: float
    train_cpu_s: float
    evaluate_s: float


def table(outcomes: Sequence[Outcome], baselines: Sequence[Mapping[str, Any]]) -> str:
    """Writes what examples and simple methods came to, in Markdown.

    Args:
        outcomes: Of examples.
        baselines: Lines of a ``baselines.json`` as ``baselines.py`` writes it; those of other files are left out.

    Returns:
        A table for each file of records, with the methods below each other.
    """
    parts = []
    for subject in dict.fromkeys(outcome.subject for outcome in outcomes):
        rows: list[tuple[str, Mapping[str, float], list[str]]] = []
        for one in (line for line in baselines if line["file"] == subject):
            rows.append((f"{one['method']} (no network)", one["test"], [""] * len(_EFFORT)))
        for outcome in (found for found in outcomes if found.subject == subject):
            rows.append((outcome.method, outcome.figures, _effort(outcome)))
        names = [name for name in _SHOWN if any(name in figures for _, figures, _ in rows)]
        head = [subject, *names, *_EFFORT]
        lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
        for method, figures, effort in rows:
            cells = [f"{figures[name]:.4g}" if name in figures else "" for name in names]
            lines.append(f"| {' | '.join([method, *cells, *effort])} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _effort(outcome: Outcome) -> list[str]:
    return [f"{outcome.steps:,}", f"{outcome.epochs:.2g}", f"{outcome.train_s:.0f} s", f"{outcome.train_cpu_s:.0f} s"]
