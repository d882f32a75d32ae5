"""Reads WebDataset tars as documents: one after the other, in memory, never unpacked to the disk.

A tar may come from a stranger. The names in it are labels and no paths, links and devices are passed by, what a header
claims is compared with the file, and nothing but text and JSON is decoded.
"""

import gzip
import io
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

from scaletrain.corpus.reading import LARGEST_DOCUMENT_BYTES, Reading, text_of_record
from scaletrain.data.tar_members import FOLDER, PLAIN_FILE, Member, split_name, walk_members
from scaletrain.errors import DataError

_FIELDS = ("txt", "txt.gz", "json", "json.gz")
_REMEDY = "Fetch or make the file again."


def read_tar(path: Path, text_field: str, reading: Reading) -> Iterator[tuple[str, str]]:
    """Reads the documents of a WebDataset tar.

    Members with the same key that follow each other are a sample. Its text is its field ``txt``, or else the field
    ``text_field`` of its ``json``; both may be compressed (``txt.gz``, ``json.gz``).

    Args:
        path: The tar, not compressed as a whole.
        text_field: Field of the JSON object that holds the text.
        reading: Where bytes read and what is left out are counted.

    Yields:
        Key and text of each sample that has a text.

    Raises:
        DataError: The tar is damaged, or a sample has JSON without text in it.
    """
    key, fields = "", dict[str, bytes | None]()
    for member_key, field, content in _members(path, reading):
        if member_key != key or field in fields:
            yield from _document(path, key, fields, text_field, reading)
            key, fields = member_key, {}
        fields[field] = content
    yield from _document(path, key, fields, text_field, reading)


def _document(
    path: Path, key: str, fields: dict[str, bytes | None], text_field: str, reading: Reading
) -> Iterator[tuple[str, str]]:
    """The text of a sample, or the reason why it has none."""
    if not fields:
        return
    found = next((field for field in _FIELDS if field in fields), None)
    content = fields.get(found or "")
    text: str | None = ""
    reason = "empty"
    if found is None:
        reason = "sample of a tar without txt or json"
    elif content is None:
        reason = f"larger than {LARGEST_DOCUMENT_BYTES >> 20} MiB"
    elif found.startswith("json"):
        text = text_of_record(content, f"{path}, sample {key!r}", text_field)
        reason = "null" if text is None else "empty"
    else:
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:
            reason = "not UTF-8"
    if text:
        yield key, text
    else:
        reading.skipped_documents[reason] += 1


def _members(path: Path, reading: Reading) -> Iterator[tuple[str, str, bytes | None]]:
    """Key, field and content of each file of a sample; no content where it is not read or is too large."""
    before = reading.bytes
    try:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            for member in walk_members(file.fileno(), size, str(path)):
                reading.bytes = before + member.offset + member.size
                names = split_name(member.name)
                if member.kind == FOLDER:
                    continue
                if member.kind != PLAIN_FILE:
                    reading.skipped_documents["link or device in a tar"] += 1
                elif names is None:
                    reading.skipped_documents["file of a tar that is in no sample"] += 1
                else:
                    yield *names, _content(file.fileno(), member, names[1], path)
            reading.bytes = before + size
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}. {_REMEDY}") from None


def _content(descriptor: int, member: Member, field: str, path: Path) -> bytes | None:
    if field not in _FIELDS or member.size > LARGEST_DOCUMENT_BYTES:
        return None
    content = os.pread(descriptor, member.size, member.offset)
    if len(content) != member.size:
        raise DataError(f"{path} became shorter while it was read. {_REMEDY}")
    if not field.endswith(".gz"):
        return content
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as unzipped:
            text = unzipped.read(LARGEST_DOCUMENT_BYTES + 1)
        if not content:
            raise EOFError("it is empty")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: the member {member.name!r} at byte {member.offset} cannot be decompressed: {error}. {_REMEDY}"
        ) from None
    return text if len(text) <= LARGEST_DOCUMENT_BYTES else None
