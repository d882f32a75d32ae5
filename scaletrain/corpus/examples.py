"""Examples for fine-tuning: what a record of each format must hold, and the text that stands for it in a build.

That text is the record as JSON, with its known fields only and in one order, so that copies, workers and the journal
need not know of formats. What is learnt of it is made in ``encoding.py``.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from scaletrain.corpus.splits import SPLITS
from scaletrain.errors import ConfigError, DataError

Format = Literal["pairs", "chat", "classes", "numbers"]

_FIELDS: dict[Format, tuple[str, ...]] = {
    "pairs": ("source", "target"),
    "chat": ("messages",),
    "classes": ("text", "text_pair", "label"),
    "numbers": ("text", "text_pair", "value"),
}
_SPLIT = "split"
_REMEDY = "Correct or remove it."
_LARGEST = 3.4e38
"""Of a value: what a model computes in fp32 can tell no larger one."""


@dataclass(frozen=True)
class ExampleOptions:
    """What is to be made of records.

    Attributes:
        format: What a record is.
        chat_template: File or name of the template that conversations are rendered with.
        classes: Names of all classes, in the order of their numbers; by default those of all records, sorted.
        max_source_tokens: Tokens after which a source is cut; None for no limit.
        max_target_tokens: The same of a target.
    """

    format: Format
    chat_template: str | None = None
    classes: tuple[str, ...] | None = None
    max_source_tokens: int | None = None
    max_target_tokens: int | None = None

    def __post_init__(self) -> None:
        belongs: dict[str, tuple[object, Format]] = {
            "--chat_template": (self.chat_template, "chat"),
            "--classes": (self.classes, "classes"),
            "--max_source_tokens": (self.max_source_tokens, "pairs"),
            "--max_target_tokens": (self.max_target_tokens, "pairs"),
        }
        for flag, (given, needed) in belongs.items():
            if given is not None and self.format != needed:
                raise ConfigError(f"{flag} belongs to --format {needed}, not to {self.format}.")
        if self.format == "chat" and self.chat_template is None:
            raise ConfigError("--format chat needs --chat_template: chatml, llama3, plain, or a file of your own.")

    @property
    def columns(self) -> tuple[str, ...]:
        """The fields of a record that are looked at."""
        return (*_FIELDS[self.format], _SPLIT)


class Example(NamedTuple):
    """A record as canonical JSON, and the split that it names."""

    text: str
    split: str | None


def parse_record(content: bytes, place: str) -> Any:
    """Parses a line of JSON.

    Args:
        content: The line.
        place: Where it stands, for messages.

    Returns:
        What it holds.

    Raises:
        DataError: It is no JSON.
    """
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not a line of JSON: {error}. Correct or remove the line.") from None


def take_example(record: Any, kind: Format, place: str) -> Example | str:
    """Takes what is known of a record.

    Args:
        record: As it was parsed; a field that is null counts as one that is not there.
        kind: The format.
        place: Where it stands, for messages.

    Returns:
        The example; or, where there is nothing to learn in it, the reason.

    Raises:
        DataError: It is no record of that format.
    """
    given = _given(record, place)
    split = given.get(_SPLIT)
    if split is not None and split not in SPLITS:
        raise DataError(f"{place}: split is {split!r}, but must be one of {', '.join(SPLITS)}. {_REMEDY}")
    found: dict[str, Any] = {}
    for name in _FIELDS[kind]:
        if name in given:
            found[name] = _FIELD_TYPES[name](given[name], f"{place}: {name}")
        elif name != "text_pair":
            fields = ", ".join(map(repr, given)) or "none"
            raise DataError(f"{place}: no {name!r}, which --format {kind} needs; the record has {fields}. {_REMEDY}")
    if reason := _nothing_in(found):
        return reason
    return Example(_canonical(found, place), split)


def take_texts(record: Any, place: str) -> str:
    """Takes the texts of a record whose class or numbers are not known yet.

    Args:
        record: As it was parsed: with ``text``, and ``text_pair`` where there is another one.
        place: Where it stands, for messages.

    Returns:
        Canonical JSON of these fields.

    Raises:
        DataError: It has no text.
    """
    given = _given(record, place)
    names: tuple[str, ...] = ("text", "text_pair")
    found = {name: _text(given[name], f"{place}: {name}") for name in names if name in given}
    if not found.get("text"):
        raise DataError(f"{place}: no text in 'text'. {_REMEDY}")
    return _canonical(found, place)


def _given(record: Any, place: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise DataError(f"{place}: a {type(record).__name__}, not an object. {_REMEDY}")
    return {name: value for name, value in record.items() if value is not None}


def _canonical(found: Mapping[str, Any], place: str) -> str:
    try:
        text = json.dumps(found, ensure_ascii=False, sort_keys=True, allow_nan=False)
        text.encode()  # a lone surrogate is valid JSON and no valid text
    except ValueError as error:
        raise DataError(f"{place}: {error}. {_REMEDY}") from None
    return text


def texts_within(example: str) -> Iterator[str]:
    """The texts of an example, as a person wrote them.

    Args:
        example: Canonical JSON.

    Yields:
        Each text that a tokenizer is to be trained on.
    """
    record = json.loads(example)
    for name in ("source", "target", "text", "text_pair"):
        if name in record:
            yield record[name]
    for message in record.get("messages", ()):
        yield message["content"]


def _nothing_in(found: Mapping[str, Any]) -> str | None:
    """Why nothing can be learnt of a record."""
    for name in ("source", "target", "text"):
        if found.get(name) == "":
            return f"empty {name}"
    messages = found.get("messages")
    if messages is not None and not any(message["role"] == "assistant" for message in messages):
        return "conversation without an answer"
    return None


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{place} is a {type(value).__name__}, not text. {_REMEDY}")
    return value


def _label(value: Any, place: str) -> str | list[str]:
    names = value if isinstance(value, list) else [value]
    if not all(isinstance(name, str) and name for name in names):
        raise DataError(
            f"{place} is {_short(value)}, but must be the name of a class, in quotes, or a list of names. {_REMEDY}"
        )
    return sorted(set(names)) if isinstance(value, list) else value


def _numbers(value: Any, place: str) -> list[float]:
    numbers = value if isinstance(value, list) else [value]
    if numbers and all(type(number) in (int, float) and abs(number) <= _LARGEST for number in numbers):
        return [float(number) for number in numbers]
    rule = f"must be a finite number of at most {_LARGEST:.1e}, or a list of them"
    raise DataError(f"{place} is {_short(value)}, but {rule}. {_REMEDY}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _messages(value: Any, place: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise DataError(f"{place} must be a list of objects with role and content. {_REMEDY}")
    messages = []
    for number, message in enumerate(value, start=1):
        for name in ("role", "content"):
            if not isinstance(message.get(name), str):
                raise DataError(f"{place}: message {number} has no text in {name!r}. {_REMEDY}")
        messages.append({name: item for name, item in message.items() if item is not None})
    return messages


_FIELD_TYPES: dict[str, Callable[[Any, str], Any]] = {
    **dict.fromkeys(("source", "target", "text", "text_pair"), _text),
    "label": _label,
    "value": _numbers,
    "messages": _messages,
}
