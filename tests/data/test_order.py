import dataclasses
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaletrain.data.mixture import Phase
from scaletrain.data.order import DatasetOptions, Order, Piece, order_of
from scaletrain.data.source_order import Packing, SourceShards, deal_to_lanes
from scaletrain.errors import BadShardError, ConfigError, DataError
from tests.data.readers import MemoryReader, packed_counts

Shards = list[list[int]]
corpora = st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=12), min_size=1, max_size=9)


def source_of(shards: Shards, name: str = "train", max_seq_len: int | None = None) -> SourceShards:
    """A source; with a length it is counted for best-fit packing."""
    counts = [np.array(shard, dtype=np.int64) for shard in shards]
    packed = max_seq_len and [packed_counts(tuple(shard), (max_seq_len,))[max_seq_len] for shard in shards]
    return SourceShards(name, [int(array.sum()) for array in counts], counts.__getitem__, packed or None)


def make_order(shards: Shards, max_seq_len: int, num_lanes: int, window_shards: int, seed: int = 1) -> Order:
    return Order([source_of(shards)], max_seq_len, num_lanes, window_shards, seed)


def epoch_of_lane(order: Order, lane: int, epoch: int) -> list[list[Piece]]:
    length = order.sources[0].sequences_of_lane(lane)
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
    assert order.sources[0].sequences_per_epoch == len(lengths) == 6 + 6
    assert sum(length < 32 for length in lengths) == 2


def test_a_lane_reads_its_own_shards_only() -> None:
    shards = [[5, 9, 13], [8, 8], [20], [3, 30], [16, 2], [11, 11]]
    order = make_order(shards, max_seq_len=8, num_lanes=3, window_shards=2)
    lanes = [set(lane) for lane in deal_to_lanes([sum(shard) for shard in shards], 3)]
    for sequence in range(100):
        assert {piece.shard for piece in order.pieces(sequence)} <= lanes[sequence % 3]


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_that_divide_the_lanes_have_shards_of_their_own(world_size: int) -> None:
    order = make_order([[9, 9, 9]] * 8, max_seq_len=8, num_lanes=8, window_shards=1)
    read = [
        {piece.shard for sequence in range(rank, 99, world_size) for piece in order.pieces(sequence)}
        for rank in range(world_size)
    ]
    assert sum(map(len, read)) == len(set.union(*read)) == 8


def test_only_the_shards_in_use_are_opened() -> None:
    opened = []

    def counts(shard: int) -> np.ndarray:
        opened.append(shard)
        return np.full(10, 100, dtype=np.int64)

    shards = SourceShards("train", [1000] * 10_000, counts)
    order = Order([shards], max_seq_len=100, num_lanes=4, window_shards=8, seed=0)
    order.pieces(10**15)
    assert len(opened) == 8
    for sequence in range(0, 4 * 20, 4):
        order.pieces(sequence)
    assert len(opened) == 16


def test_epochs_and_seeds_differ_and_lanes_wrap_on_their_own() -> None:
    order = make_order([[7] * 30, [7] * 30, [7] * 12], max_seq_len=16, num_lanes=2, window_shards=1)
    source = order.sources[0]
    assert source.sequences_of_lane(0) != source.sequences_of_lane(1)
    assert epoch_of_lane(order, 0, 0) != epoch_of_lane(order, 0, 1)
    assert order.locate(0).epoch == 0
    for lane in range(2):
        last = (source.sequences_of_lane(lane) - 1) * 2 + lane
        assert [order.locate(last).epoch, order.locate(last + 2).epoch] == [0, 1]
    other = make_order([[7] * 30, [7] * 30, [7] * 12], max_seq_len=16, num_lanes=2, window_shards=1, seed=2)
    assert epoch_of_lane(order, 0, 0) != epoch_of_lane(other, 0, 0)


def test_documents_of_all_shards_of_a_window_are_mixed() -> None:
    order = make_order([[10] * 50 for _ in range(4)], max_seq_len=100, num_lanes=1, window_shards=4)
    assert all(len({piece.shard for piece in order.pieces(sequence)}) > 1 for sequence in range(19))


def test_the_order_is_the_same_for_ever() -> None:
    # Written down once: another result means that every run in progress would read other data.
    order = make_order([[5, 9, 13], [8, 8], [20], [3, 30]], max_seq_len=8, num_lanes=2, window_shards=1, seed=1337)
    assert [[tuple(piece)[1:] for piece in order.pieces(sequence)] for sequence in (0, 1, 2, 123_457)] == [
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
    counts = np.array([50, 49])
    order = Order([SourceShards("web", [100], lambda shard: counts)], 8, 1, 1, 0)
    with pytest.raises(BadShardError, match=r"shard 0 of web counts 99 tokens, the manifest 100") as refusal:
        order.pieces(0)
    assert (refusal.value.source, refusal.value.shard, refusal.value.of_index) == ("web", 0, True)
    for packed in (12, 14):
        order = Order([SourceShards("web", [99], lambda shard: counts, packed=[packed])], 8, 1, 1, 0, "best_fit")
        with pytest.raises(BadShardError, match=rf"packs into 13 sequences of 8, the manifest says {packed}"):
            order.pieces(0)


def test_a_lane_without_a_target_is_refused() -> None:
    with pytest.raises(DataError, match="Lane 1 of 2 shards of train holds 1 tokens"):
        make_order([[5], [1]], max_seq_len=4, num_lanes=2, window_shards=1)


def mixed_order(packing: Packing = "concat", seed: int = 1337) -> Order:
    """Two sources over two lanes, in three phases."""
    web, code = [[5, 9, 13], [8, 8], [20], [3, 30]], [[7, 7], [12, 2, 4], [40]]
    sources = [source_of(web, "web", 8), source_of(code, "code", 8)]
    if packing == "document":
        counted = zip(sources, (web, code), strict=True)
        sources = [dataclasses.replace(source, packed=[len(shard) for shard in shards]) for source, shards in counted]
    phases = [Phase(7, (1.0, 0.0)), Phase(300, (3.0, 1.0)), Phase(None, (0.2, 0.8))]
    return Order(sources, 8, 2, 1, seed, packing, phases)


# Written down once, as above: another result means that every run in progress would read other data.
CONCAT = [
    [(0, 3, 1, 0, 9)],
    [(0, 1, 1, 0, 8)],
    [(1, 0, 1, 0, 7), (1, 0, 0, 0, 2)],
    [(1, 2, 0, 0, 9)],
    [(1, 0, 1, 0, 7), (1, 0, 0, 0, 2)],
]
BEST_FIT = [[(0, 3, 1, 16, 25)], [(0, 1, 1, 0, 8)], [(1, 0, 1, 0, 7)], [(1, 2, 0, 32, 40)], [(1, 0, 1, 0, 7)]]


def test_the_order_of_a_mixture_is_the_same_for_ever() -> None:
    chosen = (0, 14, 15, 16, 123_457)
    concat, packed = mixed_order("concat"), mixed_order("best_fit")
    assert [[tuple(piece) for piece in concat.pieces(sequence)] for sequence in chosen] == CONCAT
    assert [[tuple(piece) for piece in packed.pieces(sequence)] for sequence in chosen] == BEST_FIT


@pytest.mark.parametrize("packing", ["concat", "best_fit", "document"])
def test_the_occurrences_of_a_document_are_those_that_a_search_finds(packing: Packing) -> None:
    order = mixed_order(packing)
    held: dict[tuple[int, int, int], list[tuple[int, Piece]]] = {}
    for before in range(0, 901):
        if before in (0, 1, 13, 500, 900):
            for source, shard, document in [
                (0, 0, 0),
                (0, 0, 2),
                (0, 3, 1),
                (0, 2, 0),
                (1, 0, 1),
                (1, 1, 1),
                (1, 2, 0),
            ]:
                found = list(order.occurrences(source, shard, document, before))
                assert found == held.get((source, shard, document), []), before
        for piece in order.pieces(before):
            held.setdefault((piece.source, piece.shard, piece.document), []).append((before, piece))
    assert len(held[1, 2, 0]) > 100 and held[1, 2, 0][0][0] >= 14


def test_what_was_consumed_of_each_source_is_counted_without_walking() -> None:
    order = mixed_order()
    counted = np.zeros(2, dtype=np.int64)
    for sequence in range(1500):
        assert order.consumed(sequence).tolist() == counted.tolist()
        counted[order.locate(sequence).source] += 1
    assert order.consumed(10**12).sum() == 10**12
    assert order.consumed(10**12)[1] / 10**12 == pytest.approx(0.8, abs=1e-6)


def test_sources_are_shuffled_apart() -> None:
    shards = [[10] * 50, [10] * 50]
    order = Order([source_of(shards, "a"), source_of(shards, "b")], 10, 1, 1, seed=3)
    places: list[list[tuple[int, ...]]] = [[], []]
    for sequence in range(100):
        for piece in order.pieces(sequence):
            places[piece.source].append(piece[1:])
    # The first source goes as it would alone, so that another beside it changes nothing of its order.
    alone = make_order(shards, 10, 1, 1, seed=3)
    expected = [piece[1:] for sequence in range(60) for piece in alone.pieces(sequence)]
    assert places[0] == expected[: len(places[0])]
    assert places[0] != places[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer": {"sha256": "1" * 64}}, r"the tokenizer of source 1 is not that of the first.*1 and 0"),
        ({"tokenizer": {"eos_id": 7}}, r"the manifest of source 1 has eos_id 7, that of the first source 0"),
        ({"dtype": "uint32"}, r"the manifest of source 1 has dtype uint32, that of the first source uint16"),
    ],
)
def test_sources_with_other_tokens_are_refused(change: dict, message: str) -> None:
    readers = [MemoryReader(number, ((3, 4),), 8) for number in range(2)]
    assert order_of(readers, DatasetOptions(8)).pieces(0)
    tokenizer = readers[1].manifest.tokenizer.model_copy(update=change.pop("tokenizer", {}))
    readers[1].manifest = readers[1].manifest.model_copy(update={"tokenizer": tokenizer, **change})
    with pytest.raises(ConfigError, match=message):
        order_of(readers, DatasetOptions(8))
