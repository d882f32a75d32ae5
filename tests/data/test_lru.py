import pickle

import numpy as np

from scaletrain.data.lru import LastUsed, LastUsedArrays


def test_what_was_used_longest_ago_is_forgotten() -> None:
    kept: LastUsed[int, str] = LastUsed(2)
    for number in (1, 2, 1, 3):
        kept.get(number, lambda number=number: str(number))
    assert [number in kept for number in (1, 2, 3)] == [True, False, True]
    kept.forget(lambda value: value == "1")
    kept.get(4, lambda: "4")
    assert len(kept) == 2 and 3 in kept


def test_arrays_are_bounded_by_their_bytes_and_not_by_their_number() -> None:
    kept: LastUsedArrays[int] = pickle.loads(pickle.dumps(LastUsedArrays(1 << 20)))
    for number in range(1000):
        kept.get(number, lambda: np.zeros(10, np.uint16))
    assert len(kept) == 1000
    for number in range(1000, 1003):
        kept.get(number, lambda: np.zeros(1 << 18, np.uint16))
    assert len(kept) == 1 and 1002 in kept
    kept.get(2000, lambda: np.zeros(1 << 22, np.uint16))
    assert len(kept) == 1 and 2000 in kept
    kept.get(3, lambda: np.zeros(10, np.uint16))
    assert len(kept) == 1 and 3 in kept
