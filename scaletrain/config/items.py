"""Reads lists of sections, such as the sources of a mixture: every value in an item by its declared type."""

from dataclasses import replace
from typing import Any, get_args, get_origin

from scaletrain.config.coercion import coerce, describe
from scaletrain.config.fields import unknown_key
from scaletrain.config.files import Given, RawValue, parse_value
from scaletrain.config.problems import item_key, place
from scaletrain.config.section import Section


def parse_items(entry: Given) -> Given:
    """Brings a list that came as one text, from the command line, to what a file would give.

    Args:
        entry: The value as given.

    Returns:
        The same place with the value that the text stands for.

    Raises:
        ConfigError: The text is no YAML, or has a key twice.
    """
    return replace(entry, value=parse_value(entry.value, entry.origin)) if isinstance(entry.value, str) else entry


def read_items(key: str, section: type[Section], entry: Given, problems: list[str]) -> list[dict[str, Any]]:
    """Reads the items of a list.

    Args:
        key: Dotted key of the list.
        section: What each item is.
        entry: The list, as ``parse_items`` returns it.
        problems: Gets a line for each value that cannot be read, each key that does not exist or is missing.

    Returns:
        For each item its values by name, without those that gave a problem. Ranges are not checked.
    """
    expected = f"expected a list of items with {', '.join(section.model_fields)}, such as [{_example(section)}]"
    if not isinstance(entry.value, list):
        problems.append(f"{place(key, entry)}: {expected}")
        return []
    return [_read_item(key, number, section, item, entry, problems) for number, item in enumerate(entry.value)]


def _read_item(
    key: str, number: int, section: type[Section], item: RawValue, whole: Given, problems: list[str]
) -> dict[str, Any]:
    if not isinstance(item, dict):
        where = place(item_key(key, number), replace(whole, value=item))
        problems.append(f"{where}: expected an item such as {_example(section)}")
        return {}
    values: dict[str, Any] = {}
    unknown = [name for name in item if name not in section.model_fields]
    for name, entry in item.items():
        if name in unknown:
            problems.append(f"{place(item_key(key, number, name), entry)}: {unknown_key(name, section.model_fields)}")
            continue
        _read_into(values, name, section.model_fields[name].annotation, item_key(key, number, name), entry, problems)
    # A misspelt key is told once, not a second time as the one that is missing.
    for name, field in section.model_fields.items() if not unknown else ():
        if field.is_required() and name not in item:
            origin = next((entry.origin for entry in item.values()), whole.origin)
            problems.append(f"{item_key(key, number)} ({origin}): {name} is missing ({field.description}); add it")
    return values


def _read_into(values: dict[str, Any], name: str, annotation: Any, key: str, entry: Given, problems: list[str]) -> None:
    """Puts what an entry stands for into ``values``; a line into ``problems`` for each value that cannot be read."""
    if get_origin(annotation) is not dict:
        try:
            values[name] = coerce(annotation, entry.value)
        except ValueError as error:
            problems.append(f"{place(key, entry)}: {error}")
    elif not isinstance(entry.value, dict):
        rule = f"expected {describe(annotation)}, such as {{web: 0.9, code: 0.1}}"
        problems.append(f"{place(key, entry)}: {rule}")
    else:
        values[name] = {}
        for inner, inner_entry in entry.value.items():
            _read_into(values[name], inner, get_args(annotation)[1], f"{key}.{inner}", inner_entry, problems)


def _example(section: type[Section]) -> str:
    required = [name for name, field in section.model_fields.items() if field.is_required()]
    return "{" + ", ".join(f"{name}: ..." for name in required) + "}"
