import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaletrain.data.packing import IGNORED, filling, pack

EOS = 0


def test_borders_targets_and_positions() -> None:
    packed = pack([np.array([5, 6, EOS]), np.array([7, 8, 9])], max_seq_len=5, eos_id=EOS)
    assert packed.tokens.tolist() == [5, 6, EOS, 7, 8]
    assert packed.targets.tolist() == [6, EOS, IGNORED, 8, 9]
    assert packed.documents.tolist() == [0, 0, 0, 1, 1]
    assert packed.positions.tolist() == [0, 1, 2, 0, 1]


def test_a_document_that_begins_right_behind_the_sequence_is_no_target() -> None:
    whole = pack([np.array([5, 6]), np.array([7])], max_seq_len=2, eos_id=EOS)
    short = pack([np.array([5, 6])], max_seq_len=2, eos_id=EOS)
    assert whole.targets.tolist() == short.targets.tolist() == [6, IGNORED]
    assert whole.documents.tolist() == [0, 0]


def test_the_tail_is_masked_and_adds_no_border() -> None:
    packed = pack([np.array([5, EOS]), np.array([7, EOS])], max_seq_len=7, eos_id=EOS)
    assert packed.tokens.tolist() == [5, EOS, 7, EOS, EOS, EOS, EOS]
    assert packed.targets.tolist() == [EOS, IGNORED, EOS, IGNORED, IGNORED, IGNORED, IGNORED]
    assert packed.documents.tolist() == [0, 0, 1, 1, 1, 1, 1]
    assert packed.positions.tolist() == [0, 1, 0, 1, 2, 3, 4]


def test_filling_has_no_target_and_no_border() -> None:
    packed = filling(4, EOS)
    assert packed.tokens.tolist() == [EOS] * 4 and packed.targets.tolist() == [IGNORED] * 4
    assert packed.documents.tolist() == [0] * 4 and packed.positions.tolist() == [0, 1, 2, 3]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 30))
def test_a_target_is_the_next_token_of_the_same_document(lengths: list[int], max_seq_len: int) -> None:
    stream = np.arange(1, sum(lengths) + 1)
    pieces = np.split(stream, np.cumsum(lengths)[:-1])
    if len(stream) > max_seq_len + 1:
        with pytest.raises(ValueError, match="do not make a sequence"):
            pack(pieces, max_seq_len, EOS)
        return
    packed = pack(pieces, max_seq_len, EOS)
    first_tokens = {int(piece[0]) for piece in pieces}
    for place in range(max_seq_len):
        token, target = int(packed.tokens[place]), int(packed.targets[place])
        assert target == (token + 1 if token and token < len(stream) and token + 1 not in first_tokens else IGNORED)
        if token:
            piece = int(packed.documents[place])
            assert int(pieces[piece][packed.positions[place]]) == token
    assert packed.tokens.dtype == packed.targets.dtype == np.int64
    assert packed.documents.dtype == packed.positions.dtype == np.int32
