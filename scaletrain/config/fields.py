"""The schema seen as dotted keys: types, ranges, and the nearest name to a misspelt one."""

import difflib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from scaletrain.config.schema import RunConfig
from scaletrain.config.section import Section

_LIMITS = (("gt", "more than"), ("ge", "at least"), ("lt", "less than"), ("le", "at most"))


@cache
def fields() -> Mapping[str, FieldInfo]:
    """Every key that has a value, "optim.lr" for instance, in the order of the schema."""
    return MappingProxyType(dict(_walk(RunConfig, "")))


@cache
def sections() -> Mapping[str, type[Section]]:
    """The parts of the configuration by name, "optim" or "monitor.hang" for instance, in the order of the schema."""
    return MappingProxyType(dict(_walk_sections(RunConfig, "")))


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


def plain(value: Any) -> Any:
    """A value of a configuration as YAML and JSON know it.

    Args:
        value: A value of ``flatten``.

    Returns:
        The same in text, numbers, lists and dictionaries, all of them new.
    """
    if isinstance(value, Section):
        return {name: plain(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple):
        return [plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def item_section(annotation: Any) -> type[Section] | None:
    """The section that each item of a list is, SourceConfig for data.sources; None for any other type."""
    if get_origin(annotation) is not tuple:
        return None
    return _section(get_args(annotation)[0])


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
    near = nearest(key, known)
    if near:
        return f"no such key; did you mean {' or '.join(near)}?"
    return "no such key; --help lists those there are"


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """The names most like one that does not exist.

    Args:
        name: The name as typed, dotted or not.
        known: Names that exist.

    Returns:
        At most three, the likest first; none where all are far from it.
    """
    leaf = name.rpartition(".")[2]

    def likeness(candidate: str) -> float:
        whole = difflib.SequenceMatcher(None, name, candidate).ratio()
        last = difflib.SequenceMatcher(None, leaf, candidate.rpartition(".")[2]).ratio()
        return max(whole, last)

    ranked = sorted(((likeness(candidate), candidate) for candidate in known), key=lambda pair: -pair[0])
    return [candidate for score, candidate in ranked[:3] if score >= max(0.6, ranked[0][0] - 0.15)]


def _walk(model: type[BaseModel], prefix: str) -> Iterable[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        section = _section(field.annotation)
        if section:
            yield from _walk(section, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def _walk_sections(model: type[BaseModel], prefix: str) -> Iterable[tuple[str, type[Section]]]:
    for name, field in model.model_fields.items():
        section = _section(field.annotation)
        if section:
            yield prefix + name, section
            yield from _walk_sections(section, f"{prefix}{name}.")


def _section(kind: Any) -> type[Section] | None:
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def _number(value: float) -> str:
    return f"2**{value.bit_length() - 1}" if isinstance(value, int) and value > 2**31 else f"{value:g}"
