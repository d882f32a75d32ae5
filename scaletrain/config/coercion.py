"""Turns text into a value of a field's declared type, and describes types to people."""

import os
import re
from decimal import Decimal
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml

from scaletrain.config.fields import item_section
from scaletrain.config.files import RawValue
from scaletrain.config.schema import Location

_INTEGER = re.compile(r"[+-]?\d+", re.ASCII)
# Two digits of exponent, so that a slip of the finger makes no number of a billion digits.
_LARGE_INTEGER = re.compile(r"[+-]?\d+\.?\d*[eE]\+?\d{1,2}", re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_PLAIN = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "a path",
    Location: "a path or a URL",
}


def coerce(annotation: Any, value: RawValue) -> Any:
    """Reads a text as the declared type, whatever it looks like.

    A list of texts on the command line is either one text, taken as it is, or several in brackets,
    ``[first, second]``; a list of numbers needs no brackets.

    Args:
        annotation: Type of a field of the schema.
        value: What was given.

    Returns:
        A value of the type. Ranges are not checked.

    Raises:
        ValueError: The text cannot be read so; its message is the rule ("expected ...").
    """
    options = _options(annotation)
    if NoneType in options and (value is None or (isinstance(value, str) and value.lower() in ("none", "null"))):
        return None
    kind = next(option for option in options if option is not NoneType)
    if get_origin(kind) is Literal:
        if value in get_args(kind):
            return value
    elif get_origin(kind) is tuple:
        items = _items(kind, value)
        if items is not None:
            return items
    elif isinstance(value, str):
        plain = _plain(kind, value)
        if plain is not None:
            return plain
    raise ValueError(f"expected {describe(annotation)}{_hint(kind, value)}")


def describe(annotation: Any) -> str:
    """The type in words, as in "expected a whole number"."""
    options = _options(annotation)
    kind = next(option for option in options if option is not NoneType)
    section = item_section(kind)
    if section is not None:
        text = f"a list of items with {', '.join(section.model_fields)}"
    elif get_origin(kind) is dict:
        text = f"{describe(get_args(kind)[1])} for each name"
    elif get_origin(kind) is Literal:
        text = "one of " + ", ".join(map(str, get_args(kind)))
    elif get_origin(kind) is tuple:
        inner = get_args(kind)
        plural = {float: "numbers", int: "whole numbers", str: "texts"}[_options(inner[0])[0]]
        text = f"a list of {plural}" if Ellipsis in inner else f"{len(inner)} {plural}"
    else:
        text = _PLAIN[kind]
    return text + (" or none" if NoneType in options else "")


def _options(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def _plain(kind: Any, text: str) -> Any:
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower())
    if kind is int:
        return _whole_number(text)
    if kind is float:
        return float(text) if _NUMBER.fullmatch(text) else None
    if not text.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in text):
        return None  # bytes of the command line that are not UTF-8 could not be written to config.yaml
    if kind is Path:
        return Path(text).expanduser() if text else None
    if kind is Location:
        return os.path.expanduser(text) if text else None
    return text


def _whole_number(text: str) -> int | None:
    if _INTEGER.fullmatch(text):
        return int(text)
    number = Decimal(text) if _LARGE_INTEGER.fullmatch(text) else None
    return int(number) if number is not None and number == number.to_integral_value() else None


def _items(kind: Any, value: RawValue) -> tuple[Any, ...] | None:
    inner = get_args(kind)
    if isinstance(value, str):
        value = _split(value, of_text=_options(inner[0]) == (str,))
    if not isinstance(value, list) or (Ellipsis not in inner and len(value) != len(inner)):
        return None
    if any(not isinstance(item, str) for item in value):
        return None
    return tuple(coerce(inner[0], item) for item in value)


def _split(text: str, of_text: bool) -> list[RawValue] | None:
    if not text.lstrip().startswith("["):
        if of_text:
            return [text]
        return [part.strip() for part in text.strip("() ").split(",")]
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return None
    if not isinstance(node, yaml.SequenceNode) or not all(isinstance(item, yaml.ScalarNode) for item in node.value):
        return None
    return [str(item.value) for item in node.value]


def _hint(kind: Any, value: RawValue) -> str:
    if kind is int and isinstance(value, str) and re.fullmatch(r"[+-]?[\d_]+", value):
        return f", without underscores: {value.replace('_', '')}"
    if kind is int:
        return " such as 1000 or 4e9"
    if kind is float:
        return " such as 0.1 or 3e-4"
    if get_origin(kind) is tuple:
        return " such as [0.9, 0.95]" if float in map(_first, get_args(kind)) else ' such as ["first", "second"]'
    return ""


def _first(annotation: Any) -> Any:
    return _options(annotation)[0]
