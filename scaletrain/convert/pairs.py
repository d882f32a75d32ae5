"""Which numbers of one model's tensors are which of another's: equal boxes in flattened tensors.

A transposed matrix, three projections joined into one, heads that lie between each other: each is a box with other
strides. So one table serves both directions, and any slice of it can be copied alone.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class View:
    """A box in a flattened tensor.

    Attributes:
        name: The tensor's name.
        shape: Lengths of the box's sides.
        strides: Elements from one step to the next along each side.
        offset: The box's first element.
    """

    name: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    @property
    def numel(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    def narrow(self, side: int, start: int, length: int) -> "View":
        """The part of the box between two planes across a side.

        Args:
            side: Which side.
            start: First step along it.
            length: Steps.
        """
        shape = (*self.shape[:side], length, *self.shape[side + 1 :])
        return replace(self, shape=shape, offset=self.offset + start * self.strides[side])

    def permute(self, order: tuple[int, ...]) -> "View":
        """The same box with its sides in another order."""
        shape, strides = (tuple(values[side] for side in order) for values in (self.shape, self.strides))
        return replace(self, shape=shape, strides=strides)


@dataclass(frozen=True)
class Pair:
    """The same numbers in two models: boxes of one shape."""

    ours: View
    theirs: View


@dataclass(frozen=True)
class Copy:
    """What is copied where: boxes of one shape."""

    source: View
    target: View


def whole(name: str, shape: tuple[int, ...]) -> View:
    """All of a tensor, row by row."""
    return View(name, shape, row_major(shape))


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a tensor whose last side lies together in memory."""
    return tuple(math.prod(shape[side + 1 :]) for side in range(len(shape)))


def cut(copy: Copy, most: int) -> Iterator[Copy]:
    """Cuts a copy into parts that follow each other in the target.

    Args:
        copy: What is to be copied.
        most: Most elements of a part; at least 1.

    Yields:
        The parts, with the target's widest stride first.
    """
    order = tuple(sorted(range(len(copy.target.shape)), key=lambda side: -copy.target.strides[side]))
    yield from _cut(Copy(copy.source.permute(order), copy.target.permute(order)), most, 0)


def _cut(copy: Copy, most: int, side: int) -> Iterator[Copy]:
    if copy.target.numel <= most or side == len(copy.target.shape):
        if copy.target.numel:
            yield copy
        return
    length = copy.target.shape[side]
    rest = math.prod(copy.target.shape[side + 1 :])
    steps = max(1, most // rest)
    for start in range(0, length, steps):
        count = min(steps, length - start)
        part = Copy(copy.source.narrow(side, start, count), copy.target.narrow(side, start, count))
        yield from _cut(part, most, side + 1)
