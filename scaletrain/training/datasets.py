"""The datasets of a run, made of its configuration: what it trains on and what it is judged by."""

import functools
from collections.abc import Sequence
from typing import Any

from scaletrain.config.schema import RunConfig
from scaletrain.corpus.splits import VALIDATION
from scaletrain.data.dataset import SequenceDataset
from scaletrain.data.order import DatasetOptions
from scaletrain.data.shards import ShardReader
from scaletrain.data.source_order import Packing
from scaletrain.protocols import SkippedShard
from scaletrain.tasks.task import Task
from scaletrain.training.corpus import Corpora, dataset_options, phases_of, training_readers


def training_dataset(
    config: RunConfig, corpora: Corpora, skipped: Sequence[SkippedShard] = (), task: Task | None = None
) -> SequenceDataset:
    """The training split in the run's order.

    Args:
        config: The run's configuration.
        corpora: Its sources.
        skipped: Shards that are masked.
        task: Makes tensors of rows; next tokens by default, where only the order and the checksums are wanted.

    Returns:
        The sequences, by index.

    Raises:
        ConfigError: The sources have different tokenizers.
        DataError: A source cannot be dealt to so many lanes, or was not counted for best-fit packing.
    """
    data, readers = config.data, training_readers(corpora)
    phases = phases_of(data, config.train.max_seq_len)
    return SequenceDataset(readers, dataset_options(config), phases, skipped, **_reading(task, config.seed))


def evaluation_dataset(
    config: RunConfig, corpora: Corpora, task: Task | None = None, split: str = VALIDATION
) -> SequenceDataset | None:
    """A split to be judged by: neither seed, lanes nor weights choose what a run is judged by.

    Args:
        config: The run's configuration.
        corpora: Its sources.
        task: Makes tensors of rows; next tokens by default.
        split: The split of each source, as far as it has one.

    Returns:
        The sequences, by index; None where no source has such a split.
    """
    # Packing depends on the lengths of the documents alone, and need not be counted where they are simply joined. An
    # answer whose question ended up in another row would be judged as if it had none.
    is_apart = config.data.packing == "document" or config.task.name == "sft"
    packing: Packing = "document" if is_apart else "concat"
    options = DatasetOptions(config.train.max_seq_len, packing=packing, document_borders=config.data.document_borders)
    readers = [
        ShardReader(manifest, split, corpora.storage, name)
        for name, manifest in corpora.manifests.items()
        if manifest.splits.get(split)
    ]
    return SequenceDataset(readers, options, **_reading(task, _EVALUATION_SEED)) if readers else None


_EVALUATION_SEED = 0
"""Of noise in what is judged, which is the same for all runs."""


def _reading(task: Task | None, seed: int) -> dict[str, Any]:
    if task is None:
        return {}
    return {"collate": functools.partial(task.collate, seed=seed), "reads_others": task.reads_others}
