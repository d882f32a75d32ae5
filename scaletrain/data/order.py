"""The order of the data: sequence i is computed from i alone, without a scan and without state.

Shards are dealt to lanes; the shards of a lane, in a seeded order that is fixed once, form windows of a few
shards each. In every epoch a lane visits its windows in a new order, and the documents of a window are shuffled
together and joined into one stream of L tokens. The stream is cut into ceil((L - 1) / T) sequences: sequence j
takes its T inputs from ``stream[j * T]`` on, and one more token, the target of its last input. Sequence i of the
run belongs to lane ``i % num_lanes``; each lane begins its next epoch when it is through, whatever the others do.

The windows of a lane are the same in every epoch, so that each epoch of a lane has equally many sequences and
the epoch of a position is one division. Only the windows in use are opened: memory grows with the number of
shards and with the documents of ``num_lanes`` windows.
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scaletrain.data.lru import LastUsed
from scaletrain.data.shuffle import permutation
from scaletrain.errors import DataError

# What a permutation is for; each kind draws from its own stream of keys. Part of what a run is, like the formula.
_SHARDS_OF_LANE, _WINDOWS_OF_EPOCH, _DOCUMENTS_OF_WINDOW = 1, 2, 3


@dataclass(frozen=True)
class ShardDocuments:
    """What the order needs to know of a shard.

    Attributes:
        n_tokens: Tokens in the shard.
        token_counts: Gives the number of tokens of each document, int64 (documents,); called only when the
            shard's window is in use, so that a hundred thousand shards need not be opened.
    """

    n_tokens: int
    token_counts: Callable[[], NDArray[np.int64]]


class Piece(NamedTuple):
    """A range of tokens of one document: ``tokens[start:stop]`` of document ``document`` in shard ``shard``."""

    shard: int
    document: int
    start: int
    stop: int


class Location(NamedTuple):
    """Where a sequence stands: its lane, the lane's epoch, the window, and its number in the window."""

    lane: int
    epoch: int
    window: int
    position: int


@dataclass(frozen=True)
class _Lane:
    windows: list[NDArray[np.int64]]
    sequences: NDArray[np.int64]
    sequences_per_epoch: int


@dataclass(frozen=True)
class _Window:
    """One window in one epoch: ``documents`` in their shuffled order, and where each ends in the stream."""

    shards: NDArray[np.int64]
    first_document: NDArray[np.int64]
    documents: NDArray[np.int64]
    ends: NDArray[np.int64]


def deal_to_lanes(shard_tokens: Sequence[int], num_lanes: int) -> list[list[int]]:
    """Spreads shards over lanes so that the lanes hold nearly equal numbers of tokens.

    The largest shard left goes to the lane with the fewest tokens; among equals the lower index goes first.

    Args:
        shard_tokens: Tokens of each shard.
        num_lanes: Number of lanes.

    Returns:
        For each lane the indices of its shards, ascending.

    Raises:
        DataError: There are more lanes than shards.
    """
    if not 1 <= num_lanes <= len(shard_tokens):
        raise DataError(
            f"data.num_lanes is {num_lanes}, but each lane needs a shard of its own and this split has "
            f"{len(shard_tokens)}. Lower --data.num_lanes, or make more and smaller shards with "
            "tools/make_shards.py --shard_tokens."
        )
    lanes: list[list[int]] = [[] for _ in range(num_lanes)]
    loads = [(0, lane) for lane in range(num_lanes)]
    for shard in sorted(range(len(shard_tokens)), key=lambda shard: (-shard_tokens[shard], shard)):
        load, lane = heapq.heappop(loads)
        lanes[lane].append(shard)
        heapq.heappush(loads, (load + shard_tokens[shard], lane))
    return [sorted(lane) for lane in lanes]


class Order:
    """Maps the index of a sequence to the pieces of documents that it consists of."""

    def __init__(
        self, shards: Sequence[ShardDocuments], max_seq_len: int, num_lanes: int, window_shards: int, seed: int
    ) -> None:
        """Deals the shards to lanes and windows; opens none of them.

        Args:
            shards: The shards of a split, in the order of the manifest.
            max_seq_len: Inputs of a sequence, in tokens.
            num_lanes: Streams that the shards are dealt to.
            window_shards: Shards whose documents are shuffled together.
            seed: Of all shuffles.

        Raises:
            DataError: There are more lanes than shards, or a lane has no token to predict.
        """
        self.shards = shards
        self.max_seq_len = max_seq_len
        self.num_lanes = num_lanes
        self.seed = seed
        dealt = deal_to_lanes([shard.n_tokens for shard in shards], num_lanes)
        self._lanes = [self._make_lane(lane, members, window_shards) for lane, members in enumerate(dealt)]
        # Consecutive sequences come from all lanes in turn: with room for fewer, every sequence would make a
        # window anew. One more per lane covers a step in which a lane moves on to its next window.
        self._windows: LastUsed[tuple[int, int, int], _Window] = LastUsed(num_lanes + 2)
        self._visits: LastUsed[tuple[int, int], tuple[NDArray[np.int64], NDArray[np.int64]]] = LastUsed(num_lanes + 2)

    def _make_lane(self, lane: int, members: list[int], window_shards: int) -> _Lane:
        shuffled = np.array(members, dtype=np.int64)[permutation(len(members), self.seed, _SHARDS_OF_LANE, lane)]
        windows = [shuffled[start : start + window_shards] for start in range(0, len(shuffled), window_shards)]
        tokens = [sum(self.shards[shard].n_tokens for shard in window) for window in windows]
        sequences = np.array([-(-max(0, n - 1) // self.max_seq_len) for n in tokens], dtype=np.int64)
        total = int(sequences.sum())
        if total == 0:
            raise DataError(
                f"Lane {lane} of {self.num_lanes} holds {sum(tokens)} tokens, and none to predict. "
                "Lower --data.num_lanes, or add documents to the corpus."
            )
        return _Lane(windows, sequences, total)

    @property
    def sequences_per_epoch(self) -> int:
        """Sequences of one epoch of every lane, together."""
        return sum(lane.sequences_per_epoch for lane in self._lanes)

    def shards_of_lane(self, lane: int) -> list[int]:
        """Indices of the shards that a lane reads, ascending."""
        return sorted(int(shard) for window in self._lanes[lane].windows for shard in window)

    def sequences_of_lane(self, lane: int) -> int:
        """Sequences of one epoch of a lane."""
        return self._lanes[lane].sequences_per_epoch

    def locate(self, sequence: int) -> Location:
        """Finds where a sequence stands, in time that does not grow with its index.

        Args:
            sequence: Index of the sequence in the run, from 0.

        Returns:
            Its lane, the lane's epoch, the window of the lane, and its number in the window.

        Raises:
            IndexError: The index is negative.
        """
        if sequence < 0:
            raise IndexError(f"sequence {sequence} does not exist: the first is 0")
        place, lane = divmod(sequence, self.num_lanes)
        epoch, place = divmod(place, self._lanes[lane].sequences_per_epoch)
        visits, ends = self._visits.get((lane, epoch), lambda: self._visit(lane, epoch))
        turn = int(np.searchsorted(ends, place, side="right"))
        before = int(ends[turn - 1]) if turn else 0
        return Location(lane, epoch, int(visits[turn]), place - before)

    def pieces(self, sequence: int) -> list[Piece]:
        """The pieces of documents that make up a sequence.

        Args:
            sequence: Index of the sequence in the run, from 0.

        Returns:
            Ranges of tokens that, joined, are the ``max_seq_len`` inputs and the target of the last one, which is
            left out where a new document begins there, since no document predicts the next. At the end of a window
            there may be fewer.

        Raises:
            IndexError: The index is negative.
            DataError: The shards' indexes do not hold what the manifest says.
        """
        lane, epoch, window_index, position = self.locate(sequence)
        window = self._windows.get((lane, epoch, window_index), lambda: self._make_window(lane, epoch, window_index))
        start = position * self.max_seq_len
        inputs_end = start + self.max_seq_len
        stop = min(inputs_end + 1, int(window.ends[-1]))
        pieces = []
        turn = int(np.searchsorted(window.ends, start, side="right"))
        while start < stop:
            begin = int(window.ends[turn - 1]) if turn else 0
            end = min(stop, int(window.ends[turn]))
            if begin == inputs_end:
                break
            document = int(window.documents[turn])
            shard = int(np.searchsorted(window.first_document, document, side="right")) - 1
            if end > start:
                in_shard = document - int(window.first_document[shard])
                pieces.append(Piece(int(window.shards[shard]), in_shard, start - begin, end - begin))
            start, turn = end, turn + 1
        return pieces

    def _visit(self, lane: int, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        sequences = self._lanes[lane].sequences
        visits = permutation(len(sequences), self.seed, _WINDOWS_OF_EPOCH, epoch, lane)
        return visits, np.cumsum(sequences[visits])

    def _make_window(self, lane: int, epoch: int, window: int) -> _Window:
        members = self._lanes[lane].windows[window]
        counts = [self._checked_counts(int(shard)) for shard in members]
        first_document = np.cumsum([0] + [len(shard) for shard in counts[:-1]], dtype=np.int64)
        lengths = np.concatenate(counts)
        documents = permutation(len(lengths), self.seed, _DOCUMENTS_OF_WINDOW, epoch, lane, window)
        ends = np.cumsum(lengths[documents], dtype=np.int64)
        return _Window(members, first_document, documents, ends)

    def _checked_counts(self, shard: int) -> NDArray[np.int64]:
        counts = self.shards[shard].token_counts()
        # The places of all later sequences follow from the manifest's totals: they must be true.
        if int(counts.sum()) != self.shards[shard].n_tokens:
            raise DataError(
                f"The index of shard {shard} counts {int(counts.sum())} tokens, the manifest "
                f"{self.shards[shard].n_tokens}. Build the corpus again with tools/make_shards.py."
            )
        return counts
