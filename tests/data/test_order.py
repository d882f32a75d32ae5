from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaletrain.data.order import Order, Piece, ShardDocuments, deal_to_lanes
from scaletrain.errors import DataError

Shards = list[list[int]]
corpora = st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=12), min_size=1, max_size=9)


def make_order(shards: Shards, max_seq_len: int, num_lanes: int, window_shards: int, seed: int = 1) -> Order:
    counts = [np.array(shard, dtype=np.int64) for shard in shards]
    known = [ShardDocuments(int(array.sum()), lambda array=array: array) for array in counts]
    return Order(known, max_seq_len, num_lanes, window_shards, seed)


def epoch_of_lane(order: Order, lane: int, epoch: int) -> list[list[Piece]]:
    length = order.sequences_of_lane(lane)
    return [order.pieces((epoch * length + place) * order.num_lanes + lane) for place in range(length)]


def inputs_and_targets(pieces: list[Piece], max_seq_len: int) -> tuple[list[tuple[int, int, int]], ...]:
    """Tokens that a model would be given, and tokens that it would predict, as (shard, document, place)."""
    tokens = [(piece.shard, piece.document, place) for piece in pieces for place in range(piece.start, piece.stop)]
    starts = {(piece.shard, piece.document, piece.start) for piece in pieces}
    return tokens[:max_seq_len], [token for token in tokens[1:] if token not in starts]


@settings(max_examples=150, deadline=None)
@given(corpora, st.integers(1, 40), st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**63 - 1), st.integers(0, 3))
def test_each_token_is_predicted_exactly_once_an_epoch(
    shards: Shards, max_seq_len: int, num_lanes: int, window_shards: int, seed: int, epoch: int
) -> None:
    try:
        order = make_order(shards, max_seq_len, num_lanes, window_shards, seed)
    except DataError:
        assert num_lanes > len(shards) or any(sum(shard) < 2 for shard in shards)
        return
    seen: Counter[tuple[int, int, int]] = Counter()
    predicted: Counter[tuple[int, int, int]] = Counter()
    for lane in range(num_lanes):
        for pieces in epoch_of_lane(order, lane, epoch):
            inputs, targets = inputs_and_targets(pieces, max_seq_len)
            assert 0 < len(inputs) <= max_seq_len
            seen.update(inputs)
            predicted.update(targets)
    everything = {
        (shard, document, place)
        for shard, documents in enumerate(shards)
        for document, length in enumerate(documents)
        for place in range(length)
    }
    assert predicted == Counter(token for token in everything if token[2] > 0)
    # The last token of a window, an end of text, is an input only where there is room behind it.
    assert set(seen.values()) <= {1} and set(seen) <= everything
    assert len(everything) - len(seen) <= -(-len(shards) // window_shards) + num_lanes


@settings(max_examples=50, deadline=None)
@given(corpora, st.integers(1, 40), st.integers(0, 10**12))
def test_a_sequence_depends_on_its_index_alone(shards: Shards, max_seq_len: int, sequence: int) -> None:
    shards = [[*shard, 2] for shard in shards]
    fresh, used = (make_order(shards, max_seq_len, 1, 2) for _ in range(2))
    for other in range(0, 30, 3):
        used.pieces(other)
    assert used.pieces(sequence) == fresh.pieces(sequence)


def test_sequences_are_full_but_at_the_end_of_a_window() -> None:
    order = make_order([[50, 60, 70], [80, 90]], max_seq_len=32, num_lanes=1, window_shards=1)
    lengths = [sum(piece.stop - piece.start for piece in pieces) for pieces in epoch_of_lane(order, 0, 0)]
    assert order.sequences_per_epoch == len(lengths) == 6 + 6
    assert sum(length < 32 for length in lengths) == 2


def test_a_lane_reads_its_own_shards_only() -> None:
    shards = [[5, 9, 13], [8, 8], [20], [3, 30], [16, 2], [11, 11]]
    order = make_order(shards, max_seq_len=8, num_lanes=3, window_shards=2)
    lanes = [set(order.shards_of_lane(lane)) for lane in range(3)]
    assert sorted(shard for lane in lanes for shard in lane) == list(range(6))
    for sequence in range(100):
        assert {piece.shard for piece in order.pieces(sequence)} <= lanes[sequence % 3]


def test_a_batch_of_as_many_sequences_as_lanes_gives_each_rank_lanes_of_its_own() -> None:
    order = make_order([[9, 9, 9]] * 8, max_seq_len=8, num_lanes=8, window_shards=1)
    read = [
        {piece.shard for step in range(9) for slot in slots for piece in order.pieces(step * 8 + slot)}
        for slots in (range(4), range(4, 8))
    ]
    assert read[0].isdisjoint(read[1])


def test_only_the_shards_in_use_are_opened() -> None:
    opened = []

    def counts(shard: int) -> np.ndarray:
        opened.append(shard)
        return np.full(10, 100, dtype=np.int64)

    shards = [ShardDocuments(1000, lambda shard=shard: counts(shard)) for shard in range(10_000)]
    order = Order(shards, max_seq_len=100, num_lanes=4, window_shards=8, seed=0)
    order.pieces(10**15)
    assert len(opened) == 8
    for sequence in range(0, 4 * 20, 4):
        order.pieces(sequence)
    assert len(opened) == 16


def test_epochs_and_seeds_differ_and_lanes_wrap_on_their_own() -> None:
    order = make_order([[7] * 30, [7] * 30, [7] * 12], max_seq_len=16, num_lanes=2, window_shards=1)
    assert order.sequences_of_lane(0) != order.sequences_of_lane(1)
    assert epoch_of_lane(order, 0, 0) != epoch_of_lane(order, 0, 1)
    assert order.locate(0).epoch == 0
    for lane in range(2):
        last = (order.sequences_of_lane(lane) - 1) * 2 + lane
        assert [order.locate(last).epoch, order.locate(last + 2).epoch] == [0, 1]
    other = make_order([[7] * 30, [7] * 30, [7] * 12], max_seq_len=16, num_lanes=2, window_shards=1, seed=2)
    assert epoch_of_lane(order, 0, 0) != epoch_of_lane(other, 0, 0)


def test_documents_of_all_shards_of_a_window_are_mixed() -> None:
    order = make_order([[10] * 50 for _ in range(4)], max_seq_len=100, num_lanes=1, window_shards=4)
    assert all(len({piece.shard for piece in order.pieces(sequence)}) > 1 for sequence in range(19))


def test_the_order_is_the_same_for_ever() -> None:
    # Written down once: another result means that every run in progress would read other data.
    order = make_order([[5, 9, 13], [8, 8], [20], [3, 30]], max_seq_len=8, num_lanes=2, window_shards=1, seed=1337)
    assert [[tuple(piece) for piece in order.pieces(sequence)] for sequence in (0, 1, 2, 123_457)] == [
        [(3, 1, 0, 9)],
        [(2, 0, 0, 9)],
        [(3, 1, 8, 17)],
        [(0, 0, 3, 5), (0, 1, 0, 7)],
    ]


@given(st.lists(st.integers(1, 100), min_size=1, max_size=60), st.integers(1, 12))
def test_lanes_are_nearly_equal(tokens: list[int], num_lanes: int) -> None:
    if num_lanes > len(tokens):
        with pytest.raises(DataError, match=f"num_lanes is {num_lanes}.*{len(tokens)}.*Lower"):
            deal_to_lanes(tokens, num_lanes)
        return
    lanes = deal_to_lanes(tokens, num_lanes)
    loads = [sum(tokens[shard] for shard in lane) for lane in lanes]
    assert sorted(shard for lane in lanes for shard in lane) == list(range(len(tokens)))
    assert max(loads) - min(loads) <= max(tokens)
    assert all(lanes)


def test_an_index_that_contradicts_the_manifest_is_refused() -> None:
    order = Order([ShardDocuments(100, lambda: np.array([50, 49]))], 8, 1, 1, 0)
    with pytest.raises(DataError, match="counts 99 tokens, the manifest 100"):
        order.pieces(0)


def test_a_lane_without_a_target_is_refused() -> None:
    with pytest.raises(DataError, match="Lane 1 of 2 holds 1 tokens"):
        make_order([[5], [1]], max_seq_len=4, num_lanes=2, window_shards=1)
