"""A mapping of bounded size that forgets what was used longest ago."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

from numpy.typing import NDArray

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_BYTES_BESIDE = 512  # of an array that is kept: its object, its key, its place


class LastUsed(Generic[K, V]):
    """Keeps the values used last; unlike ``functools.lru_cache`` it can be pickled and belongs to one object."""

    def __init__(self, capacity: int) -> None:
        """Starts empty.

        Args:
            capacity: Values kept at most.
        """
        self.capacity = capacity
        self._used = 0
        self._values: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K, make: Callable[[], V]) -> V:
        """The value of a key; made, and the value used longest ago forgotten, where it is not kept."""
        known = self._values.get(key)
        if known is not None:
            self._values.move_to_end(key)
            return known
        value = make()
        self._values[key] = value
        self._used += self._weight(value)
        while self._used > self.capacity and len(self._values) > 1:
            self._used -= self._weight(self._values.popitem(last=False)[1])
        return value

    def forget(self, condition: Callable[[V], bool]) -> None:
        """Forgets the values that meet a condition."""
        for key in [key for key, value in self._values.items() if condition(value)]:
            self._used -= self._weight(self._values.pop(key))

    def _weight(self, value: V) -> int:
        return 1

    def __contains__(self, key: K) -> bool:
        return key in self._values

    def __len__(self) -> int:
        return len(self._values)


class LastUsedArrays(LastUsed[K, NDArray[Any]]):
    """Keeps the arrays used last; the capacity is in bytes, and the newest is kept however large it is."""

    def _weight(self, value: NDArray[Any]) -> int:
        return value.nbytes + _BYTES_BESIDE
