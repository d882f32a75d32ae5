"""What simple methods reach on the same records: the figures that a model has to beat.

python -m examples.debian.baselines --data data/debian --out data/debian/baselines.json
"""

import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fire
import numpy as np
from numpy.typing import NDArray

from examples.debian.packages import LANGUAGES
from examples.splits import BUDGETS_PERCENT, Record, read_records
from scaletrain.errors import ConfigError
from tools.fire_tool import run_tool

try:
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu import corpus_bleu, corpus_chrf
    from scipy.stats import spearmanr
    from sklearn.dummy import DummyClassifier, DummyRegressor
    from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.metrics import f1_score, mean_absolute_error, mean_squared_error, r2_score
    from sklearn.naive_bayes import MultinomialNB
except ImportError as error:
    raise SystemExit(f"error: {error.name} is missing: pip install 'scaletrain[baselines]'") from error

HELD_OUT = ("validation", "test")
MAX_FEATURES = 100_000  # words and pairs of words, the most frequent ones
MAX_ITERATIONS = 300
# Tried on the validation split, from strong regularisation to weak.
LOGISTIC_C = (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0)
NAIVE_BAYES_ALPHA = (1.0, 0.1, 0.01, 0.001)
RIDGE_ALPHA = (30.0, 10.0, 3.0, 1.0, 0.3, 0.1)
LEAD_WORDS = 7  # as many as a synopsis has on average

Figures = dict[str, float]
Splits = dict[str, list[Record]]


@dataclass(frozen=True)
class Result:
    """What one method reaches on one file."""

    file: str
    method: str
    chosen: float | None  # the value that was best on the validation split
    validation: Figures
    test: Figures
    time_s: float  # for all values that were tried


@dataclass(frozen=True)
class Request:
    """What was typed, each value of its type."""

    data: Path
    out: Path
    files: tuple[str, ...]


CLASSES = tuple(f"{name}{part}" for name in ("topics", "classification") for part in ("", "_10", "_1"))
NUMBERS = ("regression", *(f"regression_{percent}" for percent in reversed(BUDGETS_PERCENT)))
TEXTS = (*(f"translation_{language}" for language in LANGUAGES[1:]), "summarisation")


@fire.decorators.SetParseFn(str)  # type: ignore[untyped-decorator]  # a folder such as "2024_01" is text
def parse(*, data: str, out: str, files: str = ",".join((*CLASSES, *NUMBERS, *TEXTS))) -> Request:
    """Measures simple methods on the files of prepare.py.

    Args:
        data: Folder of the files.
        out: File to write the figures to, as JSON.
        files: Names of files without .jsonl, with commas between them; default: all.
    """
    names = tuple(files.split(","))
    for name in names:
        if name not in (*CLASSES, *NUMBERS, *TEXTS):
            raise ConfigError(f"--files names {name!r}; known are {', '.join((*CLASSES, *NUMBERS, *TEXTS))}.")
        if not (path := Path(data) / f"{name}.jsonl").is_file():
            raise ConfigError(f"{path} is missing: make it with python -m examples.debian.prepare --out {data}")
    return Request(Path(data), Path(out), names)


def run(request: Request) -> None:
    """Measures, prints a line for each method, and writes all figures after each file."""
    results: list[Result] = []
    print("| file | method | chosen | validation | test | time |\n|---|---|---|---|---|---|", flush=True)
    for name in request.files:
        records = read_records(request.data / f"{name}.jsonl")
        splits = {split: [record for record in records if record["split"] == split] for split in ("train", *HELD_OUT)}
        measure = classify if name in CLASSES else regress if name in NUMBERS else reword
        for result in measure(name, splits):
            results.append(result)
            print(_line(result), flush=True)
        request.out.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    print(f"\nwrote {request.out}")


def classify(name: str, splits: Splits) -> list[Result]:
    """Majority, naive Bayes on counts, and logistic regression on TF-IDF of words and pairs of words."""
    labels = {split: np.array([record["label"] for record in records]) for split, records in splits.items()}
    counts = _vectorized(CountVectorizer(ngram_range=(1, 2), max_features=MAX_FEATURES), splits)
    weights = _vectorized(_tf_idf(), splits)

    def logistic(c: float) -> LogisticRegression:
        return LogisticRegression(C=c, max_iter=MAX_ITERATIONS)

    return [
        _best(name, "majority", [None], lambda _: DummyClassifier(), counts, labels, class_figures),
        _best(name, "naive Bayes", NAIVE_BAYES_ALPHA, lambda a: MultinomialNB(alpha=a), counts, labels, class_figures),
        _best(name, "TF-IDF + logistic regression", LOGISTIC_C, logistic, weights, labels, class_figures),
    ]


def regress(name: str, splits: Splits) -> list[Result]:
    """The mean, and ridge regression on TF-IDF."""
    values = {split: np.array([record["value"] for record in records]) for split, records in splits.items()}
    weights = _vectorized(_tf_idf(), splits)
    return [
        _best(name, "mean", [None], lambda _: DummyRegressor(), weights, values, number_figures),
        _best(name, "TF-IDF + ridge", RIDGE_ALPHA, lambda a: Ridge(alpha=a), weights, values, number_figures),
    ]


def reword(name: str, splits: Splits) -> list[Result]:
    """What needs no model: the source, its beginning, and the target of the nearest source in the training set."""
    figures = translation_figures if name.startswith("translation") else summary_figures
    methods: dict[str, Callable[[list[Record]], list[str]]] = {
        "copy of the source": lambda records: [record["source"] for record in records],
        "target of the nearest source": lambda records: nearest_targets(splits["train"], records),
    }
    if name == "summarisation":
        methods["first sentence"] = lambda records: [first_sentence(record["source"]) for record in records]
        methods[f"first {LEAD_WORDS} words"] = lambda records: [
            " ".join(record["source"].split()[:LEAD_WORDS]) for record in records
        ]
    results = []
    for method, answers in methods.items():
        start = time.perf_counter()
        of_split = {
            split: figures(answers(splits[split]), [record["target"] for record in splits[split]]) for split in HELD_OUT
        }
        results.append(Result(name, method, None, of_split["validation"], of_split["test"], _since(start)))
    return results


def nearest_targets(training: Sequence[Record], asked: Sequence[Record]) -> list[str]:
    """The target of the training record whose source is the nearest by the cosine of TF-IDF vectors."""
    vectorizer = _tf_idf().fit(record["source"] for record in training)
    known = vectorizer.transform(record["source"] for record in training).T.tocsr()
    answers = []
    for first in range(0, len(asked), 500):
        wanted = vectorizer.transform(record["source"] for record in asked[first : first + 500])
        answers += [training[place]["target"] for place in np.asarray((wanted @ known).argmax(axis=1)).ravel()]
    return answers


def first_sentence(text: str) -> str:
    """What stands before the first full stop that is followed by white space."""
    return re.split(r"(?<=[.!?])\s", text, maxsplit=1)[0]


def class_figures(guessed: NDArray[Any], true: NDArray[Any]) -> Figures:
    """Accuracy, and F1 averaged over the classes."""
    return {"accuracy": float((guessed == true).mean()), "macro_f1": float(f1_score(true, guessed, average="macro"))}


def number_figures(guessed: NDArray[Any], true: NDArray[Any]) -> Figures:
    """Errors, share of explained variance, and rank correlation, which a constant has none of."""
    figures = {
        "mse": float(mean_squared_error(true, guessed)),
        "mae": float(mean_absolute_error(true, guessed)),
        "r2": float(r2_score(true, guessed)),
    }
    return figures if np.ptp(guessed) == 0 else {**figures, "spearman": float(spearmanr(true, guessed).statistic)}


def translation_figures(answers: list[str], references: list[str]) -> Figures:
    """BLEU and chrF of the corpus, as sacrebleu has them."""
    return {
        "bleu": corpus_bleu(answers, [references]).score,
        "chrf": corpus_chrf(answers, [references]).score,
    }


def summary_figures(answers: list[str], references: list[str]) -> Figures:
    """Mean F1 of ROUGE with stemming."""
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    scores = [scorer.score(reference, answer) for reference, answer in zip(references, answers, strict=True)]
    return {kind: float(np.mean([score[kind].fmeasure for score in scores])) for kind in scores[0]}


def _tf_idf() -> Any:
    return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, max_features=MAX_FEATURES, dtype=np.float32)


def _vectorized(vectorizer: Any, splits: Splits) -> dict[str, Any]:
    vectorizer.fit(record["text"] for record in splits["train"])
    return {split: vectorizer.transform(record["text"] for record in records) for split, records in splits.items()}


def _best(
    name: str,
    method: str,
    values: Sequence[float | None],
    model_of: Callable[[Any], Any],
    features: dict[str, Any],
    wanted: dict[str, NDArray[Any]],
    figures: Callable[[NDArray[Any], NDArray[Any]], Figures],
) -> Result:
    """Fits a model for each value, and takes the one with the best score of scikit-learn's on the validation split."""
    start = time.perf_counter()
    models = [model_of(value).fit(features["train"], wanted["train"]) for value in values]
    scores = [model.score(features["validation"], wanted["validation"]) for model in models]
    best = int(np.argmax(scores))
    of_split = {split: figures(models[best].predict(features[split]), wanted[split]) for split in HELD_OUT}
    return Result(name, method, values[best], of_split["validation"], of_split["test"], _since(start))


def _since(start: float) -> float:
    return round(time.perf_counter() - start, 2)


def _line(result: Result) -> str:
    cells = [result.file, result.method, "" if result.chosen is None else f"{result.chosen:g}"]
    for figures in (result.validation, result.test):
        cells.append(", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
    return f"| {' | '.join(cells)} | {result.time_s:.1f} s |"


if __name__ == "__main__":
    sys.exit(run_tool("baselines.py", parse, run))
