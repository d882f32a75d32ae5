"""The order of the data: sequence i is computed from i alone, without a scan and without state.

Sequence i of the run belongs to lane ``i % num_lanes`` and stands at place ``i // num_lanes`` of it. The mixture says
which source has that place, and which of the lane's places of that source it is; the source's own order says which
pieces of documents stand there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scaletrain.data.manifest import Manifest
from scaletrain.data.mixture import Mixture, Phase
from scaletrain.data.shards import ShardReader
from scaletrain.data.shuffle import fold
from scaletrain.data.source_order import Packing, Place, SourceOrder, SourceShards, Window
from scaletrain.errors import ConfigError, DataError

_SEED_OF_SOURCE = 5


@dataclass(frozen=True)
class DatasetOptions:
    """What the order of a run's data depends on besides its sources; see docs/data_order.md.

    Attributes:
        max_seq_len: Inputs of a sequence, in tokens.
        num_lanes: Streams that the shards of each source are dealt to.
        window_shards: Shards whose documents are shuffled together.
        seed: Of the shuffles.
        packing: How documents become sequences.
        document_borders: Whether micro batches say where a document ends.
    """

    max_seq_len: int
    num_lanes: int = 1
    window_shards: int = 8
    seed: int = 0
    packing: Packing = "concat"
    document_borders: bool = True


class Piece(NamedTuple):
    """A range of tokens of one document: ``tokens[start:stop]`` of document ``document`` in a source's shard."""

    source: int
    shard: int
    document: int
    start: int
    stop: int


class Location(NamedTuple):
    """Where a sequence stands: its source and lane, the lane's epoch, the window, and its number in the window."""

    source: int
    lane: int
    epoch: int
    window: int
    position: int


class Order:
    """Maps the index of a sequence to the pieces of documents that it consists of."""

    def __init__(
        self,
        sources: Sequence[SourceShards],
        max_seq_len: int,
        num_lanes: int,
        window_shards: int,
        seed: int,
        packing: Packing = "concat",
        phases: Sequence[Phase] | None = None,
    ) -> None:
        """Deals the shards to lanes and windows; opens none of them.

        Args:
            sources: The shards of each source.
            max_seq_len: Inputs of a sequence, in tokens.
            num_lanes: Streams that the shards of each source are dealt to.
            window_shards: Shards whose documents are shuffled together.
            seed: Of all shuffles.
            packing: How documents become sequences.
            phases: Weights of the sources over time; equal ones by default.

        Raises:
            DataError: A source has fewer shards than there are lanes, or a lane of it has no token to predict.
        """
        self.max_seq_len = max_seq_len
        self.num_lanes = num_lanes
        self.sources = [
            SourceOrder(shards, max_seq_len, num_lanes, window_shards, source_seed(seed, number), packing)
            for number, shards in enumerate(sources)
        ]
        self.mixture = Mixture(phases or [Phase(None, (1.0,) * len(sources))], num_lanes, seed)

    def locate(self, sequence: int) -> Location:
        """Finds where a sequence stands, in time that does not grow with its index.

        Args:
            sequence: Index of the sequence in the run, from 0.

        Returns:
            Its location.

        Raises:
            IndexError: The index is negative.
        """
        if sequence < 0:
            raise IndexError(f"sequence {sequence} does not exist: the first is 0")
        place, lane = divmod(sequence, self.num_lanes)
        source, number = self.mixture.locate(lane, place)
        epoch, window, position = self.sources[source].locate(lane, number)
        return Location(source, lane, epoch, window, position)

    def window(self, location: Location) -> Window:
        """The window of a location, with the pieces of all its sequences."""
        return self.sources[location.source].window(location.lane, location.epoch, location.window)

    def members(self, location: Location) -> NDArray[np.int64]:
        """Shards of the window of a location; known without opening any of them."""
        return self.sources[location.source].members(location.lane, location.window)

    def pieces(self, sequence: int) -> list[Piece]:
        """The pieces of documents that make up a sequence.

        Args:
            sequence: Index of the sequence in the run, from 0.

        Returns:
            Ranges of tokens that, joined, are the inputs and the target of the last one, which is left out where a new
            document begins there, since no document predicts the next. There may be fewer than ``max_seq_len`` inputs.

        Raises:
            IndexError: The index is negative.
            BadShardError: A shard's index cannot be read, or does not hold what the manifest says.
        """
        location = self.locate(sequence)
        pieces = self.window(location).pieces_of(location.position)
        return [Piece(location.source, *piece) for piece in pieces]

    def consumed(self, sequences: int) -> NDArray[np.int64]:
        """How many of the first sequences came from each source (sources,), int64."""
        whole, rest = divmod(sequences, self.num_lanes)
        return sum(
            (self.mixture.counts(lane, whole + (lane < rest)) for lane in range(self.num_lanes)),
            start=np.zeros(len(self.sources), dtype=np.int64),
        )

    def occurrences(self, source: int, shard: int, document: int, before: int) -> Iterator[tuple[int, Piece]]:
        """The sequences in which a document stands, in ascending order.

        Args:
            source: The source.
            shard: Index of the shard in its split.
            document: Index of the document in its shard.
            before: Sequences of the run to look at.

        Yields:
            The sequence, and the piece of the document in it.

        Raises:
            BadShardError: A shard's index cannot be read, or does not hold what the manifest says.
        """
        own = self.sources[source]
        lane, window_index = own.lane_and_window_of(shard)
        places = self.mixture.counts(lane, -(-(before - lane) // self.num_lanes))[source] if before > lane else 0
        for epoch in range(-(-int(places) // own.sequences_of_lane(lane))):
            window = own.window(lane, epoch, window_index)
            for piece in np.flatnonzero((window.pieces[:, :2] == (shard, document)).all(axis=1)).tolist():
                position = int(window.first_piece.searchsorted(piece, side="right")) - 1
                number = own.place_of(lane, Place(epoch, window_index, position))
                if number < places:
                    place = self.mixture.place_of(lane, source, number, before)
                    assert place is not None
                    yield place * self.num_lanes + lane, Piece(source, *window.pieces[piece].tolist())


def source_seed(seed: int, source: int) -> int:
    """The seed of a source's shuffles: that of the run for the first, another for each of the others."""
    return seed if source == 0 else fold(seed, _SEED_OF_SOURCE, source)


def order_of(readers: Sequence[ShardReader], options: DatasetOptions, phases: Sequence[Phase] | None = None) -> Order:
    """The order of the documents of shards.

    Args:
        readers: Of each source, with one tokenizer.
        options: What the order depends on.
        phases: Weights of the sources over time; equal ones by default.

    Returns:
        The order; no shard is opened.

    Raises:
        DataError: A source has fewer shards than there are lanes, or was not counted for best-fit packing.
        ConfigError: The sources have different tokenizers, or tokens of different types.
    """
    for reader in readers[1:]:
        _check_tokenizer(readers[0].manifest, reader)
    return Order(
        [_source_shards(reader, options) for reader in readers],
        options.max_seq_len,
        options.num_lanes,
        options.window_shards,
        options.seed,
        options.packing,
        phases,
    )


def _source_shards(reader: ShardReader, options: DatasetOptions) -> SourceShards:
    packed = [shard.documents for shard in reader.shards] if options.packing == "document" else None
    if options.packing == "best_fit":
        counts = [shard.packed.get(options.max_seq_len) for shard in reader.shards]
        packed = [count for count in counts if count is not None]
        if len(packed) < len(counts):
            raise DataError(
                f"{reader.name} was not counted for best-fit packing of {options.max_seq_len} tokens. Type: python "
                f"tools/make_shards.py pack --manifest {reader.manifest.shown} --max_seq_len {options.max_seq_len}"
            )
    return SourceShards(reader.name, [shard.tokens for shard in reader.shards], reader.token_counts, packed)


def _check_tokenizer(first: Manifest, reader: ShardReader) -> None:
    here, there = reader.manifest.tokenizer, first.tokenizer
    if here.sha256 != there.sha256:
        raise ConfigError(
            f"data.sources: the tokenizer of {reader.name} is not that of the first source (sha256 "
            f"{here.sha256} and {there.sha256}). Build the corpora with one tokenizer: "
            "tools/make_shards.py build --tokenizer FILE."
        )
    facts = {
        "dtype": (reader.manifest.dtype, first.dtype),
        "vocab_size": (here.vocab_size, there.vocab_size),
        "eos_id": (here.eos_id, there.eos_id),
        "parts": (reader.manifest.parts, first.parts),
        "values": (reader.manifest.values, first.values),
        "classes": (reader.manifest.classes, first.classes),
    }
    for name, (found, wanted) in facts.items():
        # All sources fill the same rows: tokens of another width would be read as other tokens.
        if found != wanted:
            raise ConfigError(
                f"data.sources: the manifest of {reader.name} has {name} {found}, that of the first source {wanted}. "
                "Make both in the same way: tools/make_shards.py."
            )
