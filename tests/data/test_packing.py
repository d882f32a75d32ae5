import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from scaletrain.data.packing import IGNORED, Row, pack, row_checksum

EOS = 0


def packed_row(tokens: list[int], row: Row, max_seq_len: int) -> dict[str, list[int]]:
    stream = np.full((1, max_seq_len + 1), EOS, dtype=np.uint16)
    stream[0, : len(tokens)] = tokens
    packed = pack(stream, [row])
    return {name: [] if array is None else array[0].tolist() for name, array in packed._asdict().items()}


def test_borders_targets_and_positions() -> None:
    packed = packed_row([5, 6, EOS, 7, 8, 9], Row([0, 3], 6), max_seq_len=5)
    assert packed["tokens"] == [5, 6, EOS, 7, 8]
    assert packed["targets"] == [6, EOS, IGNORED, 8, 9]
    assert packed["documents"] == [0, 0, 0, 1, 1]
    assert packed["positions"] == [0, 1, 2, 0, 1]


def test_the_tail_is_masked_and_adds_no_border() -> None:
    packed = packed_row([5, EOS, 7, EOS], Row([0, 2], 4), max_seq_len=7)
    assert packed["tokens"] == [5, EOS, 7, EOS, EOS, EOS, EOS]
    assert packed["targets"] == [EOS, IGNORED, EOS, IGNORED, IGNORED, IGNORED, IGNORED]
    assert packed["documents"] == [0, 0, 1, 1, 1, 1, 1]
    assert packed["positions"] == [0, 1, 0, 1, 2, 3, 4]


def test_a_masked_piece_keeps_its_place_and_has_no_target() -> None:
    packed = packed_row([5, 6, EOS, EOS, EOS, 8, 9], Row([0, 2, 5], 7, [(2, 5)]), max_seq_len=6)
    assert packed["targets"] == [6, IGNORED, IGNORED, IGNORED, IGNORED, 9]
    assert packed["documents"] == [0, 0, 1, 1, 1, 2]


def test_rows_without_borders_have_no_documents() -> None:
    stream = np.array([[5, 6, 7], [8, EOS, EOS]], dtype=np.uint32)
    packed = pack(stream, [Row([0], 3), Row([0], 1)])
    assert packed.documents is None and packed.positions is None
    assert packed.targets.tolist() == [[6, 7], [IGNORED, IGNORED]]
    mixed = [Row([0, 1], 3), Row([0], 1)]
    assert pack(stream, mixed, borders=False).documents is None
    assert pack(stream, mixed, borders=False).targets.tolist() == [[IGNORED, 7], [IGNORED, IGNORED]]
    assert pack(stream, mixed).documents.tolist() == [[0, 1], [0, 0]]


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=4), st.integers(1, 20))
def test_a_target_is_the_next_token_of_the_same_piece(lengths: list[list[int]], max_seq_len: int) -> None:
    stream = np.full((len(lengths), max_seq_len + 1), EOS, dtype=np.uint16)
    rows, owners = [], []
    for number, own in enumerate(lengths):
        ends = np.minimum(np.cumsum(own), max_seq_len + 1).tolist()
        begins = [0, *(end for end in ends[:-1] if end < max_seq_len)]
        stream[number, : ends[-1]] = np.arange(1, ends[-1] + 1)
        rows.append(Row(begins, ends[-1]))
        owners.append(np.searchsorted(begins, np.arange(max_seq_len + 1), side="right") - 1)
    packed = pack(stream, rows)
    for number, (row, owner) in enumerate(zip(rows, owners, strict=True)):
        for place in range(max_seq_len):
            goes_on = place + 1 < row.end and owner[place] == owner[place + 1]
            assert packed.targets[number, place] == (stream[number, place + 1] if goes_on else IGNORED)
        if packed.documents is not None and packed.positions is not None:
            assert packed.documents[number].tolist() == owner[:-1].tolist()
            assert packed.positions[number].tolist() == [
                place - row.begins[owner[place]] for place in range(max_seq_len)
            ]
    assert packed.tokens.dtype == packed.targets.dtype == np.int64
    assert packed.documents is None or (packed.documents.dtype, packed.positions.dtype) == (np.int32, np.int64)


def test_the_checksum_tells_tokens_places_and_indices_apart() -> None:
    tokens = np.array([5, 6, 7, EOS], dtype=np.uint16)
    other = np.array([5, 6, 8, EOS], dtype=np.uint16)
    rows = [Row([0], 4), Row([0, 2], 4), Row([0], 3), Row([0], 4, [(0, 4)])]
    found = [row_checksum(3, tokens, row) for row in rows]
    found += [row_checksum(4, tokens, rows[0]), row_checksum(3, other, rows[0])]
    assert len(set(found)) == 6 and all(0 <= checksum < 2**64 for checksum in found)
    # Written down once: another number means that the recorded checksums of every run would be wrong.
    assert row_checksum(3, tokens, rows[1]) == 11239463364838944120
