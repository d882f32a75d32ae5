"""The figures of a trained model on a whole split, in one process."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch

from scaletrain.config.schema import RunConfig
from scaletrain.data.corpus_facts import CorpusFacts
from scaletrain.data.loader import evaluation_batches, evaluation_sequences
from scaletrain.data.rows import MicroBatch
from scaletrain.engine.summing import sum_over
from scaletrain.errors import ConfigError, DataError
from scaletrain.training.corpus import Corpora, open_corpora
from scaletrain.training.data_history import with_absolute_places
from scaletrain.training.datasets import evaluation_dataset
from scaletrain.training.judging import ByteCount, figures_of, write_texts
from scaletrain.training.trained_run import TrainedRun

Item = TypeVar("Item")
Report = Callable[[str, int, int], None]
"""Is told what is done, how much of it is, and of how much."""


@dataclass(frozen=True)
class Score:
    """How good a model is.

    Attributes:
        metrics: By their names in metrics.jsonl.
        sequences: Of the set.
        targets: What the loss is the mean over: tokens, or documents with classes or numbers.
    """

    metrics: dict[str, float]
    sequences: int
    targets: int


def _nothing(what: str, done: int, of: int) -> None:
    pass


def score(trained: TrainedRun, split: str, manifest: str | None = None, report: Report = _nothing) -> Score:
    """Judges a model by all of a split, as evaluations of its run do by a part of the validation split.

    Args:
        trained: The run.
        split: ``validation``, ``test`` or ``train``.
        manifest: Another corpus than the run's, with its tokenizer.
        report: Is told how far it is.

    Returns:
        The figures.

    Raises:
        ConfigError: The corpus is not one for this run.
        DataError: It has no such split, or cannot be read.
    """
    config, corpora = _open(trained, manifest)
    dataset = evaluation_dataset(config, corpora, trained.task, split)
    if dataset is None:
        there = sorted({name for one in corpora.manifests.values() for name, shards in one.splits.items() if shards})
        raise DataError(f"--split {split}: {corpora.first.shown} has no such split, but {', '.join(there)}.")
    sequences, task, device = evaluation_sequences(dataset), trained.task, trained.device
    size = config.train.micro_batch_size

    def batches(what: str) -> Iterable[MicroBatch]:
        made = evaluation_batches(dataset, sequences, size, rank=0, world_size=1)
        return _counted(made, what, -(-len(sequences) // size), report)

    module = task.module(trained.model).eval()
    counted = ByteCount(task, trained.tokenizer)
    sums = sum_over(module, batches("losses"), counted, len(dataset.names), device)
    metrics = figures_of(sums, task, dataset.names)
    if task.writes:
        with torch.no_grad():
            written = write_texts(task, trained.model, batches("texts"), config.eval.sample_tokens, device)
        metrics |= task.text_figures(written)
    return Score(metrics, len(sequences), sums.targets)


def _open(trained: TrainedRun, manifest: str | None) -> tuple[RunConfig, Corpora]:
    """The corpora to be judged by, checked to be such as the run has learnt from."""
    config, run_dir, fingerprint = trained.config, trained.run_dir, None
    if manifest is None:
        config, fingerprint = with_absolute_places(config, run_dir)
    else:
        changes = {"manifest": manifest, "sources": (), "phases": (), "corpus": None}
        config = config.model_copy(update={"data": config.data.model_copy(update=changes)})
    corpora = open_corpora(config)
    if fingerprint not in (None, corpora.fingerprint):
        raise DataError(
            f"The corpora of {run_dir} are not those that it was trained on: their fingerprint is "
            f"{corpora.fingerprint}, the run's {fingerprint}. Restore them, or give --manifest."
        )
    shown, theirs = corpora.first.shown, CorpusFacts.of(corpora.first)
    if corpora.first.tokenizer.sha256 != hashlib.sha256((run_dir / "tokenizer.json").read_bytes()).hexdigest():
        raise ConfigError(
            f"{shown} was made with another tokenizer than the run's. Build it with --tokenizer "
            f"{run_dir / 'tokenizer.json'}."
        )
    for kind in ("classes", "values"):
        found, wanted = getattr(theirs, kind), getattr(trained.corpus, kind)
        if found != wanted:
            raise ConfigError(
                f"The {kind} of {shown} are {', '.join(found) or 'none'}, the run's are {', '.join(wanted) or 'none'}. "
                "Build the corpus with the same, in the same order."
            )
    return config, corpora


def _counted(items: Iterable[Item], what: str, of: int, report: Report) -> Iterator[Item]:
    for done, item in enumerate(items):
        report(what, done, of)
        yield item
    report(what, of, of)
