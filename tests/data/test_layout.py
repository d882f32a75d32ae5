from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaletrain.data.layout import Layout, best_fit, concat, concat_length, join_shuffled
from tests.data import reference_order

documents = st.lists(st.integers(0, 40), max_size=40)
Pieces = list[list[tuple[int, int, int]]]


def pieces_of(layout: Layout) -> Pieces:
    columns = zip(layout.documents.tolist(), layout.starts.tolist(), layout.stops.tolist(), strict=True)
    pieces = list(columns)
    bounds = layout.first_piece.tolist()
    return [pieces[first:behind] for first, behind in pairwise(bounds)]


def check_exactly_once(pieces: Pieces, lengths: list[int], max_seq_len: int) -> None:
    """Each token but a document's first is a target once; a row has room for its inputs and one target more."""
    targets = [(document, place) for row in pieces for document, start, stop in row for place in range(start + 1, stop)]
    assert sorted(targets) == [(d, place) for d, length in enumerate(lengths) for place in range(1, length)]
    for row in pieces:
        assert row and sum(stop - start for _, start, stop in row) <= max_seq_len + 1


@given(documents, st.integers(1, 50), st.randoms(use_true_random=False))
def test_joined_documents_are_cut_exactly(lengths: list[int], max_seq_len: int, source: object) -> None:
    order = list(range(len(lengths)))
    source.shuffle(order)  # type: ignore[attr-defined]
    layout = concat(np.array(lengths, dtype=np.int64), np.array(order, dtype=np.int64), max_seq_len)
    pieces = pieces_of(layout)
    assert len(layout) == concat_length(sum(lengths), max_seq_len)
    check_exactly_once(pieces, lengths, max_seq_len)
    expected = reference_order.concat([(0, document, lengths[document]) for document in order], max_seq_len)
    assert [[(0, *piece) for piece in row] for row in pieces] == [list(row) for row in expected]


@given(documents, st.integers(1, 50))
def test_best_fit_cuts_no_document_that_fits(lengths: list[int], max_seq_len: int) -> None:
    layout = best_fit(np.array(lengths, dtype=np.int64), max_seq_len)
    pieces = pieces_of(layout)
    check_exactly_once(pieces, lengths, max_seq_len)
    parts = [document for row in pieces for document, _, _ in row]
    for document, length in enumerate(lengths):
        # A document of n tokens has n - 1 targets, of which a sequence holds T.
        assert parts.count(document) == -(-max(0, length - 1) // max_seq_len)
    expected = reference_order.best_fit(0, lengths, max_seq_len)
    assert [[(0, *piece) for piece in row] for row in pieces] == [list(row) for row in expected]


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.sampled_from([256, 1024]))
def test_best_fit_leaves_little_room(seed: int, max_seq_len: int) -> None:
    # Lengths of text: most are short, some are longer than a sequence.
    lengths = np.random.default_rng(seed).lognormal(5.3, 1.1, 2000).astype(np.int64) + 2
    layout = best_fit(lengths, max_seq_len)
    targets = int((lengths - 1).sum())
    share = targets / (len(layout) * max_seq_len)
    assert share > 0.97
    # No packing can do with fewer sequences than its tokens fill.
    assert len(layout) >= targets / max_seq_len


def test_best_fit_grows_nearly_linearly() -> None:
    lengths = np.random.default_rng(1).lognormal(5.3, 1.1, 200_000).astype(np.int64) + 2
    layout = best_fit(lengths, 2048)
    assert int((layout.stops - layout.starts - 1).sum()) == int((lengths - 1).sum())


@pytest.mark.parametrize("lengths", [[], [0, 1, 1], [2], [9], [10], [9, 9, 1, 0]])
def test_best_fit_at_the_edges(lengths: list[int]) -> None:
    pieces = pieces_of(best_fit(np.array(lengths, dtype=np.int64), 8))
    check_exactly_once(pieces, lengths, 8)
    assert len(pieces) == {(9,): 1, (10,): 2, (2,): 1, (9, 9, 1, 0): 2}.get(tuple(lengths), 0)


def test_shards_are_joined_with_their_documents_counted_through() -> None:
    first = best_fit(np.array([3, 3, 3]), 5)
    second = best_fit(np.array([9]), 5)
    joined = join_shuffled([first, second], [3, 1], np.array([3, 0, 2, 1]))
    assert pieces_of(joined) == [
        [(3, 5, 9)],
        pieces_of(first)[0],
        [(3, 0, 6)],
        pieces_of(first)[1],
    ]
