"""The datasets of a run, made of its configuration: what it trains on and what it is judged by."""

from collections.abc import Sequence

from scaletrain.config.schema import RunConfig
from scaletrain.data.dataset import SequenceDataset
from scaletrain.data.order import DatasetOptions
from scaletrain.data.shards import ShardReader
from scaletrain.protocols import SkippedShard
from scaletrain.training.corpus import Corpora, dataset_options, phases_of, training_readers


def training_dataset(config: RunConfig, corpora: Corpora, skipped: Sequence[SkippedShard] = ()) -> SequenceDataset:
    """The training split in the run's order.

    Args:
        config: The run's configuration.
        corpora: Its sources.
        skipped: Shards that are masked.

    Returns:
        The sequences, by index.

    Raises:
        ConfigError: The sources have different tokenizers.
        DataError: A source cannot be dealt to so many lanes, or was not counted for best-fit packing.
    """
    data, readers = config.data, training_readers(corpora)
    return SequenceDataset(readers, dataset_options(config), phases_of(data, config.train.max_seq_len), skipped)


def validation_dataset(config: RunConfig, corpora: Corpora) -> SequenceDataset | None:
    """The validation splits: neither seed, lanes nor weights choose what a run is judged by.

    Args:
        config: The run's configuration.
        corpora: Its sources.

    Returns:
        The sequences, by index; None where no source has a validation split.
    """
    options = DatasetOptions(config.train.max_seq_len, document_borders=config.data.document_borders)
    readers = [
        ShardReader(manifest, "validation", corpora.storage, name)
        for name, manifest in corpora.manifests.items()
        if manifest.splits.get("validation")
    ]
    return SequenceDataset(readers, options) if readers else None
