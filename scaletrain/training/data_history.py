"""Which documents a run's steps were made of, and will be: computed from the order, and checked against its record."""

import bisect
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer

from scaletrain.config.batch_plan import BatchSchedule
from scaletrain.config.load import load_config
from scaletrain.config.schema import RunConfig, SourceConfig
from scaletrain.data.dataset import SequenceDataset
from scaletrain.data.order import Piece
from scaletrain.data.tokenizer import load_tokenizer
from scaletrain.errors import ConfigError, DataError
from scaletrain.launch.events import read_events
from scaletrain.monitors import names
from scaletrain.monitors.jsonl_writer import read_metrics
from scaletrain.training.corpus import ONLY_SOURCE, open_corpora
from scaletrain.training.datasets import training_dataset
from scaletrain.training.skipped import recorded_ranges, recorded_skips

logger = logging.getLogger(__name__)

_ROWS_AT_ONCE = 64


class UsedPiece(NamedTuple):
    """A range of tokens of a document in a sequence of a step.

    Attributes:
        sequence: Index of the sequence in the run.
        rank: The rank that holds it, with as many ranks as at the last start.
        source: Name of the source.
        shard: Path or URL of the shard.
        key: Key of the document in the shard; None where the shard is left out and cannot tell it.
        start: First token of the range in the document.
        stop: Token behind its last; 0 where nothing is known of the documents, as the shard's index is left out.
        text: What the range stands for; None where it is left out.
    """

    sequence: int
    rank: int
    source: str
    shard: str
    key: str | None
    start: int
    stop: int
    text: str | None


class Use(NamedTuple):
    """A step in which a range of a document was or will be used."""

    step: int
    is_past: bool
    sequence: int
    source: str
    shard: str
    start: int
    stop: int


class Verification(NamedTuple):
    """The checksum of a step's batch as the run recorded it, and as it is computed now."""

    step: int
    recorded: str
    computed: str


@dataclass(frozen=True)
class DataHistory:
    """The data of a run, step by step; a step has the number that metrics.jsonl gives it, from 1.

    Attributes:
        dataset: The run's sequences, without the shards that it left out.
        tokenizer: Turns tokens into text.
        schedule: Sizes of the steps to come, and the sequences that rollbacks have left out.
        max_steps: Of the run.
        world_size: Ranks of the last start.
        ends: For each recorded step, ascending from 1, the sequences consumed after it.
        hashes: For each of them the checksum of its batch.
    """

    dataset: SequenceDataset
    tokenizer: Tokenizer
    schedule: BatchSchedule
    max_steps: int
    world_size: int
    ends: list[int]
    hashes: list[str]

    @classmethod
    def open(cls, run_dir: Path) -> "DataHistory":
        """Reads a run directory, and opens the corpora where the run found them.

        Args:
            run_dir: The run directory.

        Returns:
            The history.

        Raises:
            ConfigError: The folder is no run's.
            DataError: A corpus is not there any more, or is another one.
        """
        if not (run_dir / "config.yaml").is_file():
            raise ConfigError(f"--run_dir {run_dir} holds no config.yaml; give the folder of a run that was started")
        config, fingerprint = with_absolute_places(load_config(run_dir / "config.yaml", {}), run_dir)
        corpora = open_corpora(config)
        if corpora.fingerprint != fingerprint:
            raise DataError(
                f"The corpora of {run_dir} are not those that it was trained on: their fingerprint is "
                f"{corpora.fingerprint}, the run's {fingerprint}. Restore them, or the manifest's place."
            )
        events = read_events(run_dir / "events.jsonl")
        world_sizes = [event["world_size"] for event in events if event.get("event") in ("start", "resume")]
        rows = read_metrics(run_dir / "metrics.jsonl") if (run_dir / "metrics.jsonl").exists() else []
        recorded = [row for row in rows if names.DATA_BATCH_HASH in row]  # one for each step that is part of the run
        if [row["step"] for row in recorded] != list(range(1, len(recorded) + 1)):
            raise DataError(f"{run_dir / 'metrics.jsonl'} lacks steps before step {recorded[-1]['step']}. Restore it.")
        return cls(
            training_dataset(config, corpora, recorded_skips(run_dir)),
            load_tokenizer(run_dir / "tokenizer.json"),
            BatchSchedule.of(config.train, recorded_ranges(run_dir)),
            config.train.max_steps,
            world_sizes[-1] if world_sizes else 1,
            [int(row[names.DATA_SEQUENCES]) for row in recorded],
            [row[names.DATA_BATCH_HASH] for row in recorded],
        )

    def sequences(self, step: int) -> range:
        """The sequences of a step, as recorded; of a step to come, as the configuration has it.

        Raises:
            ConfigError: There is no such step.
        """
        if not 1 <= step <= max(self.max_steps, len(self.ends)):
            raise ConfigError(f"--step {step} is not in this run, which has the steps 1 to {self.max_steps}.")
        if step <= len(self.ends):
            return range(self.schedule.first_of(self.ends[step - 2] if step > 1 else 0), self.ends[step - 1])
        first = self.schedule.sequence_after(self._consumed, step - 1 - len(self.ends))
        return range(first, first + self.schedule.size_at(first))

    def pieces(self, step: int) -> Iterator[UsedPiece]:
        """The documents of a step, sequence by sequence.

        Raises:
            ConfigError: There is no such step.
            DataError: A shard or its index cannot be read.
        """
        for sequence in self.sequences(step):
            rank = sequence % self.world_size
            lost = self.dataset.lost_shards(sequence)
            if lost:
                reader = self.dataset.readers[self.dataset.order.locate(sequence).source]
                for shard in lost:
                    yield UsedPiece(sequence, rank, reader.name, reader.describe(shard), None, 0, 0, None)
                continue
            for piece in self.dataset.order.pieces(sequence):
                reader = self.dataset.readers[piece.source]
                text, key = None, self._key_of(piece, sequence)
                if not self.dataset.is_masked(sequence, piece.source, piece.shard):
                    tokens = reader.tokens(piece.shard, piece.document, piece.start, piece.stop)
                    text = self.tokenizer.decode(tokens.tolist(), skip_special_tokens=False)
                shown = reader.describe(piece.shard)
                yield UsedPiece(sequence, rank, reader.name, shown, key, piece.start, piece.stop, text)

    def _key_of(self, piece: Piece, sequence: int) -> str | None:
        try:
            return self.dataset.readers[piece.source].keys(piece.shard)[piece.document]
        except DataError:
            if self.dataset.is_masked(sequence, piece.source, piece.shard):
                return None
            raise

    def uses(self, key: str) -> Iterator[Use]:
        """The steps in which the documents of a key were and will be used; every shard's index is looked through.

        What is left out is not used; a shard that is left out and cannot tell its keys is passed over, with a warning.

        Raises:
            DataError: No document has the key, or an index cannot be read.
        """
        found = False
        last = self.schedule.sequence_after(self._consumed, max(0, self.max_steps - len(self.ends)))
        for source, reader in enumerate(self.dataset.readers):
            for shard in range(len(reader.shards)):
                for document in [number for number, other in enumerate(self._keys_of(source, shard)) if other == key]:
                    found = True
                    for sequence, piece in self.dataset.order.occurrences(source, shard, document, last):
                        if not self.dataset.is_masked(sequence, source, shard):
                            step = self._step_of(sequence)
                            if sequence not in self.sequences(step):
                                continue  # left out by a rollback
                            place = (reader.name, reader.describe(shard), piece.start, piece.stop)
                            yield Use(step, step <= len(self.ends), sequence, *place)
        if not found:
            raise DataError(f"--key {key}: no document of the training data has it. Take keys from --step.")

    def _keys_of(self, source: int, shard: int) -> Sequence[str]:
        reader = self.dataset.readers[source]
        try:
            return reader.keys(shard)
        except DataError as error:
            if not self.dataset.is_left_out(source, shard):
                raise
            logger.warning("the documents of %s, which is left out, are not looked at: %s", reader.name, error)
            return ()

    def verify(self, steps: range) -> Iterator[Verification]:
        """Recomputes the checksums of steps.

        Args:
            steps: Steps that the run has done.

        Yields:
            Both checksums of each step.

        Raises:
            ConfigError: A step was not done.
            DataError: A shard or its index cannot be read.
        """
        if not steps or steps[0] < 1 or steps[-1] > len(self.ends):
            raise ConfigError(
                f"--verify {steps.start}:{steps.stop} asks for steps that were not done: metrics.jsonl has the steps "
                f"1 to {len(self.ends)}; give the first and the one behind the last, such as 1:{len(self.ends) + 1}."
            )
        for step in steps:
            own = self.sequences(step)
            total = sum(
                self.dataset.micro_batch(own[first : first + _ROWS_AT_ONCE])["checksum"]
                for first in range(0, len(own), _ROWS_AT_ONCE)
            )
            yield Verification(step, self.hashes[step - 1], f"{total % 2**64:016x}")

    @property
    def _consumed(self) -> int:
        return self.ends[-1] if self.ends else 0

    def _step_of(self, sequence: int) -> int:
        if sequence < self._consumed:
            return bisect.bisect_right(self.ends, sequence) + 1
        return len(self.ends) + max(1, self.schedule.steps_between(self._consumed, sequence + 1))


def with_absolute_places(config: RunConfig, run_dir: Path) -> tuple[RunConfig, str]:
    """The configuration with the corpora's places as the run found them, whatever folder this is called from.

    Args:
        config: Of the run.
        run_dir: Its folder.

    Returns:
        The configuration, and the fingerprint that the corpora had.

    Raises:
        ConfigError: The folder does not tell the places.
    """
    try:
        content = json.loads((run_dir / "corpus.json").read_text())
        places, fingerprint = dict(content["sources"]), str(content["fingerprint"])
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"{run_dir / 'corpus.json'} cannot be read: {error}. Start the run again, which writes it."
        ) from None
    data = config.data
    if data.sources:
        sources = tuple(
            SourceConfig(name=source.name, manifest=places.get(source.name, source.manifest), weight=source.weight)
            for source in data.sources
        )
        data = data.model_copy(update={"sources": sources})
    else:
        data = data.model_copy(update={"manifest": places[ONLY_SOURCE], "corpus": None})
    return config.model_copy(update={"data": data}), fingerprint
