"""Which parts of a model patterns mean: names with ``*`` and ``?``, from a dot on."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from itertools import accumulate


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern means a name, as a whole or behind a dot: ``q`` means ``blocks.0.attention.q``."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")


def belongs(name: str, pattern: str) -> bool:
    """Whether a pattern means a parameter or a module that it stands in: ``attention`` means all in each of them."""
    return any(matches(path, pattern) for path in accumulate(name.split("."), lambda path, part: f"{path}.{part}"))


def unmatched(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """The patterns that mean none of some parameters."""
    known = list(names)
    return [pattern for pattern in patterns if not any(belongs(name, pattern) for name in known)]
