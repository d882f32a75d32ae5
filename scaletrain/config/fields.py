"""The schema seen as dotted keys: types, ranges, and the nearest name to a misspelt one."""

import difflib
from collections.abc import Iterable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from scaletrain.config.schema import RunConfig, Section

_LIMITS = (("gt", "more than"), ("ge", "at least"), ("lt", "less than"), ("le", "at most"))


@cache
def fields() -> Mapping[str, FieldInfo]:
    """Every key that has a value, "optim.lr" for instance, in the order of the schema."""
    return MappingProxyType(dict(_walk(RunConfig, "")))


@cache
def sections() -> Mapping[str, type[Section]]:
    """The parts of the configuration by name, "optim" for instance, in the order of the schema."""
    return MappingProxyType({name: kind for name, field in RunConfig.model_fields.items() if (kind := _section(field))})


def flatten(config: BaseModel) -> dict[str, Any]:
    """The values of a configuration by dotted key.

    Args:
        config: The whole configuration, or one section of it.

    Returns:
        A new dictionary, in the order of the schema, with values as they are (Path, tuple, ...).
    """
    flat: dict[str, Any] = {}
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, Section):
            flat.update({f"{name}.{key}": inner for key, inner in flatten(value).items()})
        else:
            flat[name] = value
    return flat


def limits(field: FieldInfo) -> str:
    """The range of a field in words, "at least 1" for instance; empty where any value of the type is good."""
    found = [
        f"{words} {_number(getattr(limit, name))}"
        for limit in field.metadata
        for name, words in _LIMITS
        if getattr(limit, name, None) is not None
    ]
    return " and ".join(found)


def unknown_key(key: str, known: Iterable[str]) -> str:
    """What to tell somebody who typed a key that does not exist.

    Args:
        key: The dotted key as typed.
        known: Keys that exist.

    Returns:
        The rule and the nearest real keys, compared as a whole and by their last part.
    """
    leaf = key.rpartition(".")[2]

    def likeness(candidate: str) -> float:
        whole = difflib.SequenceMatcher(None, key, candidate).ratio()
        last = difflib.SequenceMatcher(None, leaf, candidate.rpartition(".")[2]).ratio()
        return max(whole, last)

    ranked = sorted(((likeness(candidate), candidate) for candidate in known), key=lambda pair: -pair[0])
    near = [candidate for score, candidate in ranked[:3] if score >= max(0.6, ranked[0][0] - 0.15)]
    if near:
        return f"no such key; did you mean {' or '.join(near)}?"
    return "no such key; --help lists those there are"


def _walk(model: type[BaseModel], prefix: str) -> Iterable[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        section = _section(field)
        if section:
            yield from _walk(section, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def _section(field: FieldInfo) -> type[Section] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def _number(value: float) -> str:
    return f"2**{value.bit_length() - 1}" if isinstance(value, int) and value > 2**31 else f"{value:g}"
