"""What the numbers of a corpus of examples mean: found by a look at all records before any is encoded."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from scaletrain.corpus.documents import Document
from scaletrain.corpus.examples import ExampleOptions
from scaletrain.data.manifest import LABEL
from scaletrain.errors import DataError


@dataclass(frozen=True)
class Meaning:
    """See ``Manifest`` for these: whether words have parts, names of the values of a document, and of classes."""

    parts: bool = False
    values: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    def values_of(self, record: dict[str, Any]) -> tuple[float, ...]:
        """The values of a record, in the order of their names.

        Args:
            record: An example, parsed.

        Returns:
            As many numbers as ``values`` are.
        """
        if "value" in record:
            return tuple(record["value"])
        if "label" not in record:
            return ()
        label = record["label"]
        if self.values == (LABEL,):
            return (self.classes.index(label),)
        return tuple(int(name in label) for name in self.classes)


def find_meaning(examples: Iterable[Document], options: ExampleOptions) -> Meaning:
    """Looks at all examples.

    Args:
        examples: All of them, of all splits.
        options: What is to be made of them.

    Returns:
        What the manifest will say.

    Raises:
        DataError: Records do not go together, or have a class that is not one of those given.
    """
    if options.format in ("pairs", "chat"):
        return Meaning(parts=True)
    seen = _Seen(options.classes)
    for example in examples:
        seen.add(example.source, json.loads(example.text))
    if options.format == "numbers":
        names = ("value",) if seen.n_values == 1 else tuple(f"value_{number}" for number in range(seen.n_values))
        return Meaning(seen.has_pairs, names)
    classes = options.classes or tuple(sorted(seen.classes))
    if len(set(classes)) < max(2, len(classes)):
        raise DataError(
            f"The classes are {', '.join(map(repr, classes)) or 'none'}: two or more are needed, each with a name of "
            "its own. Check the records' labels, or --classes."
        )
    return Meaning(seen.has_pairs, classes if seen.has_lists else (LABEL,), classes)


class _Seen:
    def __init__(self, known: tuple[str, ...] | None) -> None:
        self._known = None if known is None else set(known)
        self._first = ""
        self.classes: set[str] = set()
        self.has_pairs = False
        self.has_lists = False
        self.n_values = 0

    def add(self, source: str, record: dict[str, Any]) -> None:
        is_first = not self._first
        self._first = self._first or source
        self.has_pairs = self.has_pairs or "text_pair" in record
        if "label" in record:
            is_list = isinstance(record["label"], list)
            self.has_lists = is_list if is_first else self.has_lists
            self._compare(source, is_list, self.has_lists, ("one name", "a list of names"))
            self.classes.update(self._names(source, record["label"] if is_list else [record["label"]]))
        if "value" in record:
            self.n_values = len(record["value"]) if is_first else self.n_values
            self._compare(source, len(record["value"]), self.n_values)

    def _names(self, source: str, names: list[str]) -> Iterator[str]:
        for name in names:
            if self._known is not None and name not in self._known:
                raise DataError(f"{source}: class {name!r} is none of --classes. Add it there, or correct the record.")
            yield name

    def _compare(self, source: str, found: int, first: int, told: tuple[str, ...] = ()) -> None:
        if found != first:
            now, before = (told[found], told[first]) if told else (f"{found} numbers", f"{first}")
            raise DataError(f"{source} has {now}, where {self._first} has {before}. All records must have the same.")
