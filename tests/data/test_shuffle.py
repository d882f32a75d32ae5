import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from scaletrain.data.shuffle import permutation, splitmix64


def test_splitmix64_gives_the_published_sequence() -> None:
    gamma, seed = 0x9E3779B97F4A7C15, 1234567
    states = np.array([(seed + turn * gamma) % 2**64 for turn in range(3)], dtype=np.uint64)
    assert splitmix64(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_permutations_are_the_same_for_ever() -> None:
    # Written down once: another result means that every run in progress would read other data.
    assert permutation(10, 1337, 3, 0, 2).tolist() == [2, 0, 1, 9, 7, 6, 4, 5, 3, 8]
    assert permutation(6, 2**64 + 5, 1).tolist() == permutation(6, 5, 1).tolist()


@given(st.integers(0, 300), st.lists(st.integers(0, 2**63), min_size=1, max_size=4))
def test_permutations_hold_everything_once(size: int, names: list[int]) -> None:
    assert sorted(permutation(size, *names).tolist()) == list(range(size))


def test_names_and_their_order_matter() -> None:
    found = {tuple(permutation(20, *names).tolist()) for names in [(0, 1), (1, 0), (1, 1), (0, 0), (1,), (0, 1, 0)]}
    assert len(found) == 6


def test_each_place_is_as_likely_as_another() -> None:
    first = np.bincount([permutation(8, seed)[0] for seed in range(4000)], minlength=8)
    assert abs(first - 500).max() < 100  # 5 standard deviations
