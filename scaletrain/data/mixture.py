"""Which source each sequence comes from: seeded blocks with fixed quotas, in closed form.

Each lane is a row of places. A phase begins at a place and has a weight for each source. Its places are cut into
blocks of ``BLOCK``; in each block a source gets its weight's share, rounded down or up, and a seeded permutation says
which places these are. The rounding turns through a period of ``PERIOD`` blocks in which every source gets exactly its
share, so that how many places a source had before any place is a sum of two table entries: nothing is counted through.
"""

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scaletrain.data.lru import LastUsed
from scaletrain.data.shuffle import fold, permutation

BLOCK = 256
"""Places of a lane in which the quotas hold."""
PERIOD = 4096
"""Blocks after which the rounding begins anew; weights are multiples of 1 / (BLOCK * PERIOD), about a millionth."""
# Coprime to the period and near its golden section, so that the shares rounded up are spread evenly over time.
_STRIDE = 2531
_PLACES_OF_BLOCK, _START_OF_LANE = 4, 6


@dataclass(frozen=True)
class Phase:
    """A part of a run.

    Attributes:
        until_place: First place of a lane after it; None for the last phase.
        weights: Of each source, not negative, not all zero.
    """

    until_place: int | None
    weights: tuple[float, ...]


class Mixture:
    """Assigns the places of each lane to sources."""

    def __init__(self, phases: Sequence[Phase], num_lanes: int, seed: int) -> None:
        """Computes the quotas of a period for each phase.

        Args:
            phases: With ascending ``until_place``, the last without one.
            num_lanes: Streams that share the sources.
            seed: Of the order of sources in a block.
        """
        self.n_sources = len(phases[0].weights)
        self._seed = seed
        self._starts = [0, *(phase.until_place or 0 for phase in phases[:-1])]
        self._quotas = [_Quotas(phase.weights) for phase in phases]
        self._blocks: LastUsed[tuple[int, int, int], _Block] = LastUsed(num_lanes + 2)
        self._before: LastUsed[tuple[int, int], NDArray[np.int64]] = LastUsed(len(phases) * num_lanes)
        self._turns = [fold(seed, _START_OF_LANE, lane) % PERIOD for lane in range(num_lanes)]

    def locate(self, lane: int, place: int) -> tuple[int, int]:
        """The source of a place, and which of the lane's places of that source it is.

        Args:
            lane: The lane.
            place: Place in the lane, from 0.

        Returns:
            The source, and the number of the lane's earlier places that have the same source.
        """
        if self.n_sources == 1:
            return 0, place
        phase, block, slot = self._split(place)
        table = self._block(lane, phase, block)
        return table.sources[slot], table.numbers[slot]

    def counts(self, lane: int, place: int) -> NDArray[np.int64]:
        """Places of each source before a place of a lane (sources,), int64."""
        if self.n_sources == 1:
            return np.array([place], dtype=np.int64)
        phase, block, slot = self._split(place)
        return self._counts(lane, phase, block, slot)

    def place_of(self, lane: int, source: int, number: int, before: int) -> int | None:
        """The inverse of ``locate``.

        Args:
            lane: The lane.
            source: The source.
            number: Which of the lane's places of that source, from 0.
            before: Places to look at.

        Returns:
            The place, or None where it is not before that one.
        """
        if self.n_sources == 1:
            return number if number < before else None
        place = (
            bisect.bisect_left(range(before + 1), number + 1, key=lambda place: self.counts(lane, place)[source]) - 1
        )
        return place if place < before else None

    def _split(self, place: int) -> tuple[int, int, int]:
        phase = bisect.bisect_right(self._starts, place) - 1
        return phase, *divmod(place - self._starts[phase], BLOCK)

    def _counts(self, lane: int, phase: int, block: int, slot: int) -> NDArray[np.int64]:
        counts = self._counts_before(lane, phase, block)
        if slot:
            counts = counts + np.bincount(self._block(lane, phase, block).sources[:slot], minlength=self.n_sources)
        return counts

    def _counts_before(self, lane: int, phase: int, block: int) -> NDArray[np.int64]:
        start = self._before.get((lane, phase), lambda: self._counts_at_start(lane, phase))
        return start + self._quotas[phase].before(self._turns[lane], block)

    def _counts_at_start(self, lane: int, phase: int) -> NDArray[np.int64]:
        if phase == 0:
            return np.zeros(self.n_sources, dtype=np.int64)
        return self._counts(lane, phase - 1, *divmod(self._starts[phase] - self._starts[phase - 1], BLOCK))

    def _block(self, lane: int, phase: int, block: int) -> "_Block":
        return self._blocks.get((lane, phase, block), lambda: self._make_block(lane, phase, block))

    def _make_block(self, lane: int, phase: int, block: int) -> "_Block":
        quotas = self._quotas[phase].of_block(self._turns[lane], block)
        sources = np.empty(BLOCK, dtype=np.int64)
        places = permutation(BLOCK, self._seed, _PLACES_OF_BLOCK, phase, lane, block)
        sources[places] = np.repeat(np.arange(self.n_sources), quotas)
        numbers = np.empty(BLOCK, dtype=np.int64)
        for source, earlier in enumerate(self._counts_before(lane, phase, block)):
            numbers[sources == source] = earlier + np.arange(quotas[source])
        return _Block(sources.tolist(), numbers.tolist())


class _Block(NamedTuple):
    """For each place of a block its source, and how many earlier places of the lane have the same."""

    sources: list[int]
    numbers: list[int]


class _Quotas:
    """How many places of a block each source gets, for the weights of one phase."""

    def __init__(self, weights: Sequence[float]) -> None:
        units = np.array(weight_units(weights), dtype=np.int64)
        self._whole = units // PERIOD
        shifts = np.arange(PERIOD, dtype=np.int64)[:, None] * _STRIDE % PERIOD
        # On a line the sources' remainders lie side by side; a source is rounded up where a whole number falls in its
        # part. Shifting the line through all multiples of 1 / PERIOD rounds each one up as often as it is due.
        borders = np.concatenate([[0], np.cumsum(units % PERIOD)])
        extra = np.diff((borders + shifts) // PERIOD, axis=1)
        self._extra = extra
        self._extra_before = np.concatenate([np.zeros((1, len(units)), dtype=np.int64), np.cumsum(extra, axis=0)])

    def of_block(self, turn: int, block: int) -> NDArray[np.int64]:
        quotas: NDArray[np.int64] = self._whole + self._extra[(turn + block) % PERIOD]
        return quotas

    def before(self, turn: int, block: int) -> NDArray[np.int64]:
        return self._whole * block + self._total_extra(turn + block) - self._total_extra(turn)

    def _total_extra(self, blocks: int) -> NDArray[np.int64]:
        periods, rest = divmod(blocks, PERIOD)
        total: NDArray[np.int64] = self._extra_before[-1] * periods + self._extra_before[rest]
        return total


def weight_units(weights: Sequence[float]) -> list[int]:
    """Weights as whole shares of ``BLOCK * PERIOD``.

    Args:
        weights: Not negative, not all zero.

    Returns:
        Whole numbers whose sum is ``BLOCK * PERIOD``: each share rounded down, at least 1 for a weight above zero; what
        is left over goes to the largest remainders, what is missing comes from the largest share; among equals the
        first.
    """
    total, available = sum(map(Fraction, weights)), BLOCK * PERIOD
    shares = [Fraction(weight) / total * available for weight in weights]
    units = [max(math.floor(share), 1 if share else 0) for share in shares]
    for index in sorted(range(len(units)), key=lambda index: (units[index] - shares[index], index)):
        if sum(units) >= available:
            break
        units[index] += 1
    units[units.index(max(units))] -= sum(units) - available
    return units
