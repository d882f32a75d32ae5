"""What all readers of input files share: how much was read, what was left out, and how large a document may be."""

import io
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from scaletrain.errors import DataError

# The tokenizer takes more than a hundred bytes of memory for each of a document, so that this is 8 GB and more in a
# worker. Also of what a compressed member becomes: a few kilobytes can claim to be gigabytes.
LARGEST_DOCUMENT_BYTES = 64 << 20
_FOLD = "Split it into documents, or remove it."


@dataclass
class Reading:
    """Where the reading of a corpus stands.

    Attributes:
        bytes: Of the input files, read so far; compressed files count as they lie on the disk.
        skipped_files: Files that are not read, and why.
        skipped_documents: Parts of files that are not documents: how many, by reason.
    """

    bytes: int = 0
    skipped_files: dict[str, str] = field(default_factory=dict)
    skipped_documents: Counter[str] = field(default_factory=Counter)

    def start_again(self) -> None:
        """Forgets what the last pass counted."""
        self.bytes = 0
        self.skipped_documents.clear()


def open_counted(path: Path, reading: Reading) -> io.BufferedReader:
    """Opens a file, of which each byte that is read is counted in the reading."""
    return io.BufferedReader(cast(io.RawIOBase, _CountedFile(path, reading)), 1 << 20)


class _CountedFile(io.RawIOBase):
    def __init__(self, path: Path, reading: Reading) -> None:
        super().__init__()
        self._file = path.open("rb", buffering=0)
        self._reading = reading

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        count = self._file.readinto(buffer)
        self._reading.bytes += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def text_of_record(content: bytes, place: str, text_field: str) -> str | None:
    """Takes the text out of a JSON object.

    Args:
        content: The object, in UTF-8.
        place: Where it stands, for messages.
        text_field: Field that holds the text.

    Returns:
        The text; empty where it is, None where the field is null.

    Raises:
        DataError: It is no object, or has no text in that field.
    """
    try:
        record = json.loads(content)
        text = record.get(text_field) if isinstance(record, dict) else None
        if isinstance(record, dict) and text_field in record and text is None:
            return None
        if isinstance(text, str):
            text.encode()  # a lone surrogate is valid JSON and no valid text
            return text
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not a line of JSON: {error}. Correct or remove the line.") from None
    if isinstance(record, dict) and text_field in record:
        kind = type(record[text_field]).__name__
        raise DataError(f"{place}: field {text_field!r} holds {kind}, not text. Correct or remove the line.")
    found = f"has the fields {', '.join(map(repr, record))}" if isinstance(record, dict) else "is not an object"
    raise DataError(f"{place}: no text in field {text_field!r}; the line {found}. Name the field with --text_field.")


def describe_skipped(reasons: Mapping[str, int]) -> str:
    """What was not read, in one line: ``3 (2 not UTF-8, 1 of another suffix)``."""
    told = ", ".join(f"{count} {reason}" for reason, count in Counter(reasons).most_common())
    return f"{sum(reasons.values())} ({told or 'none'})"


def too_large(place: str) -> DataError:
    """The error for a document that is larger than one may be."""
    return DataError(
        f"{place} is larger than {LARGEST_DOCUMENT_BYTES >> 20} MiB, the most that a document may have. {_FOLD}"
    )
