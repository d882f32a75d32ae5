"""Rows of a family's table: how tensors of ours lie in one of theirs."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from scaletrain.config.schema import ModelConfig
from scaletrain.convert.pairs import View, row_major

Shape = tuple[int, ...]

# From shapes of ours and the model: the shape of theirs, and for each of ours the box that it is in theirs (its shape
# is how ours is seen, row by row).
Layout = Callable[[str, Sequence[Shape], ModelConfig], tuple[Shape, list[View]]]


# Stand for a layer's number in names: a layer of a decoder, or of a model that is one stack; and one of an encoder.
LAYER, ENCODER_LAYER = "{layer}", "{encoder_layer}"


@dataclass(frozen=True)
class Row:
    """Tensors of ours that together are one of theirs.

    Attributes:
        ours: Their names, with ``LAYER`` or ``ENCODER_LAYER`` where they are those of a layer.
        theirs: Its name.
        layout: How they lie in it.
        holds: Of which models; None for all of the family.
    """

    ours: tuple[str, ...]
    theirs: str
    layout: Layout
    holds: Callable[[ModelConfig], bool] | None = None

    @property
    def counts(self) -> str | None:
        """Which of the numbers of layers stands in the names; None for none."""
        return next((number for number in (LAYER, ENCODER_LAYER) if number in self.theirs), None)

    def of_layer(self, layer: int) -> "Row":
        """The row of one layer."""

        def numbered(name: str) -> str:
            return name.format(layer=layer, encoder_layer=layer)

        return replace(self, ours=tuple(map(numbered, self.ours)), theirs=numbered(self.theirs))


def where(holds: Callable[[ModelConfig], bool], row: Row) -> Row:
    """A row that is in the table of some models of the family only."""
    return replace(row, holds=holds)


def same(ours: str, theirs: str) -> Row:
    """A tensor that is the same in both."""
    return Row((ours,), theirs, _joined)


def transposed(ours: str, theirs: str) -> Row:
    """A matrix that they store input x output."""
    return Row((ours,), theirs, _joined_transposed)


def joined(ours: Sequence[str], theirs: str) -> Row:
    """Tensors that follow each other along the first side of theirs."""
    return Row(tuple(ours), theirs, _joined)


def joined_transposed(ours: Sequence[str], theirs: str) -> Row:
    """Matrices that they store input x output, one beside the other."""
    return Row(tuple(ours), theirs, _joined_transposed)


def joined_by_head(ours: Sequence[str], theirs: str) -> Row:
    """Tensors of heads that follow each other head by head: for each head its part of the first, of the second, ..."""
    return Row(tuple(ours), theirs, _joined_by_head)


def halved_rows(ours: str, theirs: str) -> Row:
    """A tensor whose even rows, or numbers of a vector, are the first half of theirs, and the odd ones the second."""
    return Row((ours,), theirs, _halved_rows)


def halved_columns(ours: str, theirs: str) -> Row:
    """A matrix whose even columns are the first half of theirs, and the odd ones the second."""
    return Row((ours,), theirs, _halved_columns)


def single_row(ours: str, theirs: str) -> Row:
    """A vector that they store as a matrix of one row."""
    return Row((ours,), theirs, _single_row)


def _joined(name: str, shapes: Sequence[Shape], model: ModelConfig) -> tuple[Shape, list[View]]:
    del model
    whole = (sum(shape[0] for shape in shapes), *shapes[0][1:])
    offset, views = 0, []
    for shape in shapes:
        views.append(View(name, shape, row_major(shape), offset))
        offset += math.prod(shape)
    return whole, views


def _joined_transposed(name: str, shapes: Sequence[Shape], model: ModelConfig) -> tuple[Shape, list[View]]:
    del model
    width = sum(shape[0] for shape in shapes)
    offset, views = 0, []
    for shape in shapes:
        views.append(View(name, shape, (1, width), offset))
        offset += shape[0]
    return (shapes[0][1], width), views


def _joined_by_head(name: str, shapes: Sequence[Shape], model: ModelConfig) -> tuple[Shape, list[View]]:
    rows, rest = shapes[0][0], shapes[0][1:]
    head = model.head_dim * math.prod(rest)
    seen = (rows // model.head_dim, head)
    views = [View(name, seen, (len(shapes) * head, 1), place * head) for place in range(len(shapes))]
    return (rows * len(shapes), *rest), views


def _halved_rows(name: str, shapes: Sequence[Shape], model: ModelConfig) -> tuple[Shape, list[View]]:
    del model
    rows, rest = shapes[0][0], math.prod(shapes[0][1:])
    return shapes[0], [View(name, (rows // 2, 2, rest), (rest, rows // 2 * rest, 1))]


def _halved_columns(name: str, shapes: Sequence[Shape], model: ModelConfig) -> tuple[Shape, list[View]]:
    del model
    rows, columns = shapes[0]
    return shapes[0], [View(name, (rows, columns // 2, 2), (columns, 1, columns // 2))]


def _single_row(name: str, shapes: Sequence[Shape], model: ModelConfig) -> tuple[Shape, list[View]]:
    del model
    return (1, *shapes[0]), [View(name, shapes[0], row_major(shapes[0]))]
