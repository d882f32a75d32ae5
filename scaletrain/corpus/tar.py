"""Reads WebDataset tars as documents: one after the other, in memory, never unpacked to the disk.

A tar may come from a stranger. The names in it are labels and no paths, links and devices are passed by, what a header
claims is compared with the file, and nothing but text and JSON is decoded.
"""

import gzip
import io
import struct
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from scaletrain.corpus.reading import LARGEST_DOCUMENT_BYTES, Reading, open_counted, text_of_record
from scaletrain.errors import DataError

_FIELDS = ("txt", "txt.gz", "json", "json.gz")
_LARGEST_EXTENSION = 1 << 20  # long names and the like, which tarfile reads at once
_REMEDY = "Fetch or make the file again."


class _CheckedHeader(tarfile.TarInfo):
    """A header that claims nothing absurd."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        extends = header.type in (b"x", b"g", b"X", b"L", b"K", b"S")
        if header.size < 0 or (extends and header.size > _LARGEST_EXTENSION):
            raise tarfile.ReadError(f"a header claims {header.size} bytes")
        return header


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
    for name, content in _members(path, reading):
        folder, _, base = name.rpartition("/")
        stem, _, field = base.partition(".")
        member_key = f"{folder}/{stem}" if folder else stem
        if member_key != key or field in fields:
            yield from _document(path, key, fields, text_field, reading)
            key, fields = member_key, {}
        fields[field] = content
    yield from _document(path, key, fields, text_field, reading)


def _document(
    path: Path, key: str, fields: dict[str, bytes | None], text_field: str, reading: Reading
) -> Iterator[tuple[str, str]]:
    """The text of a sample, or the reason why it has none."""
    found = next((field for field in _FIELDS if field in fields), None)
    content = fields.get(found or "")
    reason = None
    if not fields:
        return
    if found is None:
        reason = "sample of a tar without txt or json"
    elif content is None:
        reason = f"larger than {LARGEST_DOCUMENT_BYTES >> 20} MiB"
    elif found.startswith("json"):
        text = text_of_record(content, f"{path}, sample {key!r}", text_field)
        reason = None if text else "empty"
    else:
        try:
            text = content.decode("utf-8")
            reason = None if text else "empty"
        except UnicodeDecodeError:
            reason = "not UTF-8"
    if reason is None:
        yield key, text
    else:
        reading.skipped_documents[reason] += 1


def _members(path: Path, reading: Reading) -> Iterator[tuple[str, bytes | None]]:
    """Name and content of each plain file; None for one that is not read or is too large."""
    size = path.stat().st_size
    place = 0
    try:
        with (
            open_counted(path, reading) as stream,
            tarfile.open(fileobj=stream, mode="r|", tarinfo=_CheckedHeader, errorlevel=2) as tar,
        ):
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # else it grows with every member
                place = member.offset
                # Else tarfile reads on to where the next header would be, however far behind the end that is.
                if tar.offset > size + tarfile.BLOCKSIZE:
                    raise tarfile.ReadError(f"{member.name!r} claims {member.size} bytes, the file has {size}")
                if member.issparse() or member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
                    if not member.isdir():
                        reading.skipped_documents["link, device or sparse file in a tar"] += 1
                    continue
                yield member.name, _content(tar, member)
    # tarfile lets through what its parsing stumbles over.
    except (tarfile.TarError, OSError, EOFError, zlib.error, ValueError, LookupError, struct.error) as error:
        raise DataError(f"{path} cannot be read at byte {place}: {error}. {_REMEDY}") from None


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | None:
    field = member.name.rpartition("/")[2].partition(".")[2]
    if field not in _FIELDS or member.size > LARGEST_DOCUMENT_BYTES:
        return None
    file = tar.extractfile(member)
    if file is None:
        return None
    content = file.read()
    if len(content) != member.size:
        raise tarfile.ReadError(f"{member.name!r} is cut")
    if not field.endswith(".gz"):
        return content
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as unzipped:
        content = unzipped.read(LARGEST_DOCUMENT_BYTES + 1)
    return content if len(content) <= LARGEST_DOCUMENT_BYTES else None
