"""The order of one source: its shards in lanes and windows, and the sequences of each lane, epoch after epoch.

Shards are dealt to lanes; the shards of a lane, in a seeded order that is fixed once, form windows of a few shards
each. In every epoch a lane visits its windows in a new order, and what a window holds is shuffled anew. The windows of
a lane are the same in every epoch, so that each epoch of a lane has equally many sequences and the epoch of a place is
one division. Only the windows in use are opened: memory grows with the number of shards and with the documents of the
windows in use.
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scaletrain.data.layout import Integers, best_fit, concat, concat_length, join_shuffled, one_each
from scaletrain.data.lru import LastUsed
from scaletrain.data.shuffle import permutation
from scaletrain.errors import BadShardError, DataError

Packing = Literal["concat", "best_fit", "document"]

# What a permutation is for; each kind draws from its own stream of keys. Part of what a run is, like the formula.
_SHARDS_OF_LANE, _WINDOWS_OF_EPOCH, _CONTENT_OF_WINDOW = 1, 2, 3


@dataclass(frozen=True)
class SourceShards:
    """What the order needs to know of the shards of a source.

    Attributes:
        name: Of the source, for messages.
        n_tokens: Tokens of each shard.
        token_counts: Gives the tokens of each document of a shard, int64 (documents,); called only when the shard's
            window is in use, so that a hundred thousand shards need not be opened.
        packed: The number of sequences of each shard, where that does not follow from its tokens.
    """

    name: str
    n_tokens: Sequence[int]
    token_counts: Callable[[int], Integers]
    packed: Sequence[int] | None = None


class Place(NamedTuple):
    """Where a sequence of a source stands: its lane's epoch, the window of the lane, and its number in the window."""

    epoch: int
    window: int
    position: int


@dataclass(frozen=True)
class Window:
    """One window in one epoch: sequence j has the pieces ``first_piece[j]`` to ``first_piece[j + 1]``.

    Attributes:
        first_piece: (sequences + 1,), int64.
        pieces: For each piece its shard, its document in the shard, its first token in the document and the token
            behind its last (pieces, 4), int32.
    """

    first_piece: Integers
    pieces: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.first_piece) - 1

    def pieces_of(self, position: int) -> list[list[int]]:
        """The pieces of one sequence, each as shard, document, start and stop."""
        first, behind = self.first_piece[position : position + 2].tolist()
        found: list[list[int]] = self.pieces[first:behind].tolist()
        return found


@dataclass(frozen=True)
class _Lane:
    windows: list[Integers]
    sequences: Integers
    sequences_per_epoch: int


def deal_to_lanes(shard_tokens: Sequence[int], num_lanes: int, name: str = "train") -> list[list[int]]:
    """Spreads shards over lanes so that the lanes hold nearly equal numbers of tokens.

    The largest shard left goes to the lane with the fewest tokens; among equals the lower index goes first.

    Args:
        shard_tokens: Tokens of each shard.
        num_lanes: Number of lanes.
        name: Of the source, for the message.

    Returns:
        For each lane the indices of its shards, ascending.

    Raises:
        DataError: There are more lanes than shards.
    """
    if not 1 <= num_lanes <= len(shard_tokens):
        raise DataError(
            f"data.num_lanes is {num_lanes}, but each lane needs a shard of its own and {name} has "
            f"{len(shard_tokens)}. Lower --data.num_lanes, or make more and smaller shards with "
            "tools/make_shards.py --shard_tokens."
        )
    lanes: list[list[int]] = [[] for _ in range(num_lanes)]
    loads = [(0, lane) for lane in range(num_lanes)]
    for shard in np.argsort(-np.asarray(shard_tokens, dtype=np.int64), kind="stable").tolist():
        load, lane = loads[0]
        lanes[lane].append(shard)
        heapq.heapreplace(loads, (load + shard_tokens[shard], lane))
    return [sorted(lane) for lane in lanes]


class SourceOrder:
    """Maps a place of a lane to a sequence of one source."""

    def __init__(
        self, shards: SourceShards, max_seq_len: int, num_lanes: int, window_shards: int, seed: int, packing: Packing
    ) -> None:
        """Deals the shards to lanes and windows; opens none of them.

        Args:
            shards: The shards of a split, in the order of the manifest.
            max_seq_len: Inputs of a sequence, in tokens.
            num_lanes: Streams that the shards are dealt to.
            window_shards: Shards whose documents are shuffled together.
            seed: Of all shuffles of this source.
            packing: How documents become sequences.

        Raises:
            DataError: There are more lanes than shards, or a lane has no token to predict.
        """
        self.shards = shards
        self.max_seq_len = max_seq_len
        self.seed = seed
        self.packing: Packing = packing
        dealt = deal_to_lanes(shards.n_tokens, num_lanes, shards.name)
        self._lanes = [self._make_lane(lane, members, window_shards) for lane, members in enumerate(dealt)]
        # Consecutive sequences come from all lanes in turn: with room for fewer, every sequence would make a
        # window anew. One more per lane covers a step in which a lane moves on to its next window.
        self._windows: LastUsed[tuple[int, int, int], Window] = LastUsed(num_lanes + 2)
        self._visits: LastUsed[tuple[int, int], tuple[Integers, Integers]] = LastUsed(num_lanes + 2)

    def _make_lane(self, lane: int, members: list[int], window_shards: int) -> _Lane:
        shuffled = np.array(members, dtype=np.int64)[permutation(len(members), self.seed, _SHARDS_OF_LANE, lane)]
        windows = [shuffled[start : start + window_shards] for start in range(0, len(shuffled), window_shards)]
        sequences = np.array([self._length(window) for window in windows], dtype=np.int64)
        total = int(sequences.sum())
        if total == 0:
            tokens = sum(self.shards.n_tokens[shard] for shard in members)
            raise DataError(
                f"Lane {lane} of {len(self.shards.n_tokens)} shards of {self.shards.name} holds {tokens} tokens, and "
                "none to predict. Lower --data.num_lanes, or add documents to the corpus."
            )
        return _Lane(windows, sequences, total)

    def _length(self, window: Integers) -> int:
        if self.shards.packed is not None:
            return sum(self.shards.packed[shard] for shard in window.tolist())
        return concat_length(sum(self.shards.n_tokens[shard] for shard in window.tolist()), self.max_seq_len)

    @property
    def sequences_per_epoch(self) -> int:
        """Sequences of one epoch of every lane, together."""
        return sum(lane.sequences_per_epoch for lane in self._lanes)

    def sequences_of_lane(self, lane: int) -> int:
        """Sequences of one epoch of a lane."""
        return self._lanes[lane].sequences_per_epoch

    def lane_and_window_of(self, shard: int) -> tuple[int, int]:
        """The lane that reads a shard, and its window there."""
        for number, lane in enumerate(self._lanes):
            for index, window in enumerate(lane.windows):
                if shard in window:
                    return number, index
        raise IndexError(f"there is no shard {shard}")

    def locate(self, lane: int, place: int) -> Place:
        """Finds where a sequence stands, in time that does not grow with its place.

        Args:
            lane: The lane.
            place: Which sequence of this source in the lane, from 0, over all epochs.

        Returns:
            Its place.
        """
        epoch, place = divmod(place, self._lanes[lane].sequences_per_epoch)
        visits, ends = self._visits.get((lane, epoch), lambda: self._visit(lane, epoch))
        turn = int(ends.searchsorted(place, side="right"))
        before = int(ends[turn - 1]) if turn else 0
        return Place(epoch, int(visits[turn]), place - before)

    def place_of(self, lane: int, place: Place) -> int:
        """The inverse of ``locate``."""
        visits, ends = self._visits.get((lane, place.epoch), lambda: self._visit(lane, place.epoch))
        turn = int(np.flatnonzero(visits == place.window)[0])
        before = int(ends[turn - 1]) if turn else 0
        return place.epoch * self._lanes[lane].sequences_per_epoch + before + place.position

    def members(self, lane: int, window: int) -> Integers:
        """Shards of a window (shards,), int64."""
        return self._lanes[lane].windows[window]

    def members_after(self, lane: int, place: Place) -> Integers:
        """Shards of the window that the lane visits after the one of a place."""
        plan = self._lanes[lane]
        behind = self.place_of(lane, place._replace(position=0)) + int(plan.sequences[place.window])
        return plan.windows[self.locate(lane, behind).window]

    def window(self, lane: int, epoch: int, window: int) -> Window:
        """The sequences of a window in an epoch.

        Args:
            lane: The lane.
            epoch: The lane's epoch.
            window: Which of the lane's windows.

        Returns:
            Their pieces.

        Raises:
            BadShardError: A shard's index cannot be read, or does not hold what the manifest says.
        """
        return self._windows.get((lane, epoch, window), lambda: self._make_window(lane, epoch, window))

    def _visit(self, lane: int, epoch: int) -> tuple[Integers, Integers]:
        sequences = self._lanes[lane].sequences
        visits = permutation(len(sequences), self.seed, _WINDOWS_OF_EPOCH, epoch, lane)
        return visits, np.cumsum(sequences[visits])

    def _make_window(self, lane: int, epoch: int, window: int) -> Window:
        members = self._lanes[lane].windows[window]
        counts = [self._checked_counts(int(shard)) for shard in members]
        first_document = np.cumsum([0] + [len(shard) for shard in counts[:-1]], dtype=np.int64)
        names = (self.seed, _CONTENT_OF_WINDOW, epoch, lane, window)
        if self.packing == "best_fit":
            packed = [best_fit(lengths, self.max_seq_len) for lengths in counts]
            for shard, made in zip(members, packed, strict=True):
                self._check_packed(int(shard), len(made))
            order = permutation(sum(map(len, packed)), *names)
            layout = join_shuffled(packed, [len(shard) for shard in counts], order)
        else:
            lay_out = concat if self.packing == "concat" else one_each
            lengths = np.concatenate(counts)
            layout = lay_out(lengths, permutation(len(lengths), *names), self.max_seq_len)
        slots = np.searchsorted(first_document, layout.documents, side="right") - 1
        columns = (members[slots], layout.documents - first_document[slots], layout.starts, layout.stops)
        return Window(layout.first_piece, np.stack(columns, axis=1).astype(np.int32))

    def _checked_counts(self, shard: int) -> Integers:
        counts = self.shards.token_counts(shard)
        # The places of all later sequences follow from the manifest's totals: they must be true.
        if int(counts.sum()) != self.shards.n_tokens[shard]:
            raise BadShardError(
                f"The index of shard {shard} of {self.shards.name} counts {int(counts.sum())} tokens, the manifest "
                f"{self.shards.n_tokens[shard]}. Build the corpus again with tools/make_shards.py.",
                self.shards.name,
                shard,
                of_index=True,
            )
        return counts

    def _check_packed(self, shard: int, sequences: int) -> None:
        assert self.shards.packed is not None  # best-fit is never ordered without its counts
        if sequences != self.shards.packed[shard]:
            raise BadShardError(
                f"Shard {shard} of {self.shards.name} packs into {sequences} sequences of {self.max_seq_len}, the "
                f"manifest says {self.shards.packed[shard]}. Count again with tools/make_shards.py pack.",
                self.shards.name,
                shard,
                of_index=True,
            )
