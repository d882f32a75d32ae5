"""Permutations that are a pure function of integers, whatever the version of any library.

A permutation of n things is found by sorting them by keys: thing j gets

    splitmix64(base + j)        with base = fold of splitmix64 over the integers that name the permutation

in arithmetic modulo 2**64, and the things are put in ascending order of their keys. splitmix64 is a bijection,
so that no two keys are equal. This formula is part of what a run is: changing it changes every run's data.
"""

import numpy as np
from numpy.typing import NDArray

_WORD = 2**64
_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_FIRST_FACTOR = np.uint64(0xBF58476D1CE4E5B9)
_SECOND_FACTOR = np.uint64(0x94D049BB133111EB)


def splitmix64(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scrambles 64-bit words.

    Args:
        words: Array (n,), uint64.

    Returns:
        Array (n,), uint64: a bijection of the words that leaves no visible pattern.

    Source:
        Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014, with the constants of
        the variant called Mix13.
    """
    words = words + _GOLDEN_GAMMA
    words = (words ^ (words >> np.uint64(30))) * _FIRST_FACTOR
    words = (words ^ (words >> np.uint64(27))) * _SECOND_FACTOR
    return words ^ (words >> np.uint64(31))


def fold(*names: int) -> int:
    """Condenses integers into one word; their order matters.

    Args:
        names: Integers of at least 0; what exceeds 64 bits is cut off.

    Returns:
        The word, from 0 to 2**64 - 1.
    """
    word = 0
    for name in names:
        word = int(splitmix64(np.array([word ^ (name % _WORD)], dtype=np.uint64))[0])
    return word


def permutation(size: int, *names: int) -> NDArray[np.int64]:
    """The permutation that a list of integers names.

    Args:
        size: Number of things.
        names: What makes this permutation differ from others, such as seed, purpose and epoch.

    Returns:
        Array (size,), int64: the things 0 to size - 1 in their new order.
    """
    words = np.arange(size, dtype=np.uint64) + np.uint64(fold(*names))
    return np.argsort(splitmix64(words), kind="stable").astype(np.int64, copy=False)
