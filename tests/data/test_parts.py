import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaletrain.data.manifest import largest_vocabulary
from scaletrain.data.parts import join_parts, split_parts


@given(st.data(), st.sampled_from(["uint16", "uint32"]))
def test_words_are_taken_apart_as_they_were_joined(data: st.DataObject, dtype: str) -> None:
    largest = largest_vocabulary(dtype, parts=True) - 1
    pairs = data.draw(st.lists(st.tuples(st.integers(0, largest), st.integers(0, 1))))
    tokens, parts = [token for token, _ in pairs], [part for _, part in pairs]
    words = join_parts(tokens, parts, np.dtype(dtype))
    assert words.dtype == dtype
    # Plain arithmetic, without shifts of numpy's types.
    assert words.tolist() == [token + part * (largest + 1) for token, part in pairs]
    found, found_parts = split_parts(words)
    assert (found.tolist(), found_parts.tolist()) == (tokens, parts)
    assert found.dtype == dtype and found_parts.dtype == np.uint8


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
def test_rows_of_words_keep_their_shape(dtype: str) -> None:
    words = join_parts([7, 8], [1, 0], np.dtype(dtype))
    found, parts = split_parts(np.stack([words, words[::-1]]))
    assert found.tolist() == [[7, 8], [8, 7]] and parts.tolist() == [[1, 0], [0, 1]]
