"""A mapping of bounded size that forgets what was used longest ago."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LastUsed(Generic[K, V]):
    """Keeps the values used last; unlike ``functools.lru_cache`` it can be pickled and belongs to one object."""

    def __init__(self, capacity: int) -> None:
        """Starts empty.

        Args:
            capacity: Values kept at most.
        """
        self.capacity = capacity
        self._values: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K, make: Callable[[], V]) -> V:
        """The value of a key; made, and the value used longest ago forgotten, where it is not kept."""
        known = self._values.get(key)
        if known is not None:
            self._values.move_to_end(key)
            return known
        value = make()
        self._values[key] = value
        if len(self._values) > self.capacity:
            self._values.popitem(last=False)
        return value

    def forget(self, condition: Callable[[V], bool]) -> None:
        """Forgets the values that meet a condition."""
        for key in [key for key, value in self._values.items() if condition(value)]:
            del self._values[key]

    def __contains__(self, key: K) -> bool:
        return key in self._values

    def __len__(self) -> int:
        return len(self._values)
