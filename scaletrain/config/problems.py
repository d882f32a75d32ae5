"""What to tell about a value that a field cannot have: which, where, and what it may be."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from scaletrain.config.fields import fields, item_section, limits
from scaletrain.config.files import Given, RawValue

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_RANGE_ERRORS = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")
# Of errors whose own words say it in the language of programmers.
_RULES = {
    "string_too_short": "must not be empty",
    "string_pattern_mismatch": "may hold only the letters a to z and A to Z, digits, '.', '_' and '-'",
}
# The first follows from the field that the default is made of, the second was reported when the item was read.
_CONSEQUENCES = ("default_factory_not_called", "missing")


def place(key: str, entry: Given) -> str:
    """A key with its value, shortened where it is long, and where it was written."""
    value = shown(entry.value)
    return f"{key} = {value if len(value) <= 80 else value[:77] + '...'} ({entry.origin})"


def item_key(key: str, number: int, *names: str) -> str:
    """What a message calls an item of a list, or a key in it.

    Args:
        key: Dotted key of the list.
        number: Which item, from 0; people count from 1.
        names: The key in the item, if it is about one.

    Returns:
        "data.sources, item 2: weight" for instance.
    """
    item = f"{key}, item {number + 1}"
    return f"{item}: {'.'.join(names)}" if names else item


def shown(value: RawValue) -> str:
    """A value as somebody might have written it."""
    if value is None:
        return "null"
    if isinstance(value, list):
        return "[" + ", ".join(map(shown, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {shown(entry.value)}" for name, entry in value.items()) + "}"
    return value


def range_problems(error: ValidationError, given: Mapping[str, Given]) -> Iterator[str]:
    """Tells what is out of range.

    Args:
        error: What the schema found.
        given: What was written, by dotted key; lists of sections as lists.

    Returns:
        A line for each value that is itself wrong.
    """
    for detail in error.errors(include_url=False):
        if detail["type"] in _CONSEQUENCES:
            continue
        names = [str(part) for part in detail["loc"]]
        length = next((end for end in (3, 2, 1) if ".".join(names[:end]) in fields()), len(names))
        key, rest = ".".join(names[:length]), detail["loc"][length:]
        field = fields().get(key)
        entry = given.get(key, Given(str(detail["input"]), "derived"))
        section = item_section(field.annotation) if field else None
        if section and len(rest) > 1:
            number, inner = int(rest[0]), [str(part) for part in rest[1:]]
            field = section.model_fields[inner[0]] if len(inner) == 1 else None
            reason = _reason(field, detail)
            yield f"{place(item_key(key, number, *inner), _inside(entry, number, inner))}: {reason}; give another value"
        else:
            item = f" in item {int(rest[-1]) + 1}" if rest else ""
            reason = _reason(None, detail) + item if item else _reason(field, detail)
            yield f"{place(key, entry)}: {reason}; give another value"


def _reason(field: FieldInfo | None, detail: "ErrorDetails") -> str:
    if field and detail["type"] in _RANGE_ERRORS:
        return f"must be {limits(field)}"
    return _RULES.get(detail["type"], detail["msg"])


def _inside(entry: Given, number: int, names: Sequence[str]) -> Given:
    value: RawValue = entry.value[number] if isinstance(entry.value, list) else None
    for name in names:
        if isinstance(value, dict):
            entry = value[name]
            value = entry.value
    return entry
