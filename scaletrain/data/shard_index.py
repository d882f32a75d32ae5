"""The index of a shard: where each document lies in the tar, under which key, and how many tokens it gives.

A shard is an ordinary tar. In those that ``tools/make_shards.py build`` writes a document is the members ``KEY.json``
and ``KEY.tokens.npy``; what those made elsewhere hold is decoded by ``foreign.py``. The index is made by walking over
the tar's headers; what a header claims is checked before it is believed.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray

from scaletrain.data.manifest import NATIVE_FIELD, Content
from scaletrain.data.stored_array import LARGEST_HEADER, parse_array_header, read_arrays
from scaletrain.data.tar_members import BLOCK, FOLDER, PLAIN_FILE, Member, split_name, walk_members
from scaletrain.errors import DataError
from scaletrain.files import whole_file

Taken = TypeVar("Taken")

TOKENS_FIELD = NATIVE_FIELD
FACTS_FIELD = "json"
_VERSION = 2
_COLUMNS = ("offsets", "sizes", "n_tokens", "n_bytes")
_VALUES = "values"
_FACTS = ("size", "checksum", "edges", "dtype")
_KEYS = ("keys", "key_ends")
_DTYPES = ("uint16", "uint32")
_EDGE_BYTES = 4096
_LARGEST_FACTS = 1 << 20  # bytes of a document's JSON
_LONGEST_FACT = 4096  # characters of a text in an index
_LARGEST_TEXT = 1 << 40  # bytes; more than any tar holds, and far from where sums would wrap around
_REMEDY = "Copy the shard again from where it came, or build the corpus again with tools/make_shards.py."


class _Facts(NamedTuple):
    """What the JSON of a document tells: bytes of its text, and its values."""

    n_bytes: int
    values: Sequence[float]


@dataclass(frozen=True)
class ShardIndex:
    """Where the documents of one shard are.

    Attributes:
        offsets: First byte of each document in the tar (documents,), int64: of its tokens where they lie there as
            they are read, else of the member that is decoded.
        sizes: Bytes of each document from there on (documents,), int64.
        n_tokens: Tokens that each document gives (documents,), int64.
        n_bytes: Bytes of each document's text in UTF-8 (documents,), int64.
        size: Of the tar, in bytes.
        checksum: xxh3-128 of the tar, as hexadecimal digits.
        edges: xxh3-128 of the tar's bytes around the headers of its first and its last document, which tells
            another tar of the same size at the price of two short reads.
        dtype: Type of the tokens, ``uint16`` or ``uint32``.
        content: What was indexed.
        keys: Of the documents, in an index that was just made; one that was read holds none, see ``read_keys``.
        values: Numbers that each document has (documents, m), float64; None where documents have none.
    """

    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    n_tokens: NDArray[np.int64]
    n_bytes: NDArray[np.int64]
    size: int
    checksum: str
    edges: str
    dtype: str
    content: Content = field(default_factory=Content)
    keys: Sequence[str] | None = None
    values: NDArray[np.float64] | None = None

    def write(self, path: Path) -> None:
        """Writes the index with the keys, whole or not at all, as an npz file without pickles.

        Args:
            path: The file.

        Raises:
            ValueError: The index was read, not made, so that its keys are not known.
        """
        if self.keys is None or len(self.keys) != len(self.offsets):
            raise ValueError("an index is written with the keys of all documents")
        encoded = [key.encode("utf-8", "surrogateescape") for key in self.keys]
        ends = np.cumsum([len(key) for key in encoded], dtype=np.int64)
        columns: dict[str, Any] = {
            "version": np.asarray(_VERSION),
            "content": np.asarray(self.content.model_dump_json()),
            "keys": np.frombuffer(b"".join(encoded), dtype=np.uint8),
            "key_ends": ends,
            **{name: np.asarray(getattr(self, name)) for name in (*_COLUMNS, *_FACTS)},
        }
        if self.values is not None:
            columns[_VALUES] = self.values
        with whole_file(path) as stream:
            np.savez(stream, **columns)

    @classmethod
    def read(cls, source: Path | BinaryIO, shown: str | None = None) -> "ShardIndex":
        """Reads an index, without its keys.

        Args:
            source: The file that ``write`` made, or such a file open.
            shown: Its name for messages; the path by default.

        Returns:
            The index; whether it is the one of its shard is for the reader to check.

        Raises:
            DataError: It is missing or damaged.
        """
        return _read(source, shown, (*_COLUMNS, *_FACTS, _VALUES, "content"), cls._of_stored)

    @staticmethod
    def read_keys(source: Path | BinaryIO, shown: str | None = None, descriptor: int | None = None) -> list[str]:
        """Reads the documents' keys, which a training run does not hold.

        Args:
            source: The file that ``write`` made, or such a file open.
            shown: Its name for messages; the path by default.
            descriptor: Of the open tar, from whose headers the keys are taken where the index is of version 1.

        Returns:
            Keys in the order of the documents. Bytes of a name that are not UTF-8 are surrogates.

        Raises:
            DataError: The index is missing or damaged, or has no keys and no tar is given.
        """
        found = _read(source, shown, (*_KEYS, "offsets"), _stored_keys)
        if isinstance(found, list):
            return found
        name = shown or str(source)
        if descriptor is None:
            raise DataError(f"The index {name} is of version 1, which has no keys. {_REMEDY}")
        return _keys_of_headers(descriptor, found, name)

    @classmethod
    def _of_stored(cls, stored: Mapping[str, NDArray[Any]], version: int) -> "ShardIndex":
        columns: dict[str, Any] = {name: _column(stored, name) for name in _COLUMNS if name in stored}
        facts: dict[str, Any] = {name: _fact(stored, name) for name in _FACTS}
        if not isinstance(facts["size"], int) or facts["dtype"] not in _DTYPES:
            raise ValueError(f"its size is {facts['size']!r} and its dtype {facts['dtype']!r}")
        if version == 1:
            columns["sizes"] = columns["n_tokens"] * np.dtype(facts["dtype"]).itemsize
        else:
            facts["content"] = Content.model_validate_json(_fact(stored, "content"))
        if len({len(column) for column in columns.values()}) != 1:
            raise ValueError("its columns differ in length")
        return cls(**columns, **facts, values=_values(stored, len(columns["offsets"])))


def index_path(shard: Path) -> Path:
    """Where the index of a shard lies: ``train-000000.index.npz`` beside ``train-000000.tar``."""
    return shard.with_name(shard.name.removesuffix(".tar") + ".index.npz")


def index_shard(path: Path, n_values: int = 0) -> ShardIndex:
    """Makes the index of a shard whose tokens lie ready in it. See ``index_tokens``."""
    try:
        with path.open("rb") as stream:
            return index_tokens(stream, str(path), n_values)
    except OSError as error:
        raise DataError(f"Shard {path} cannot be read: {error.strerror}. {_REMEDY}") from None


def index_tokens(stream: BinaryIO, shown: str, n_values: int = 0) -> ShardIndex:
    """Makes the index of a shard whose tokens lie ready in it, by walking over its headers.

    Args:
        stream: The open tar.
        shown: Its path, for messages.
        n_values: Numbers that each document has.

    Returns:
        Its index with the documents' keys, not yet written.

    Raises:
        DataError: The tar is truncated, holds a document whose tokens or facts cannot be understood, a key twice, or
            no document.
        OSError: It cannot be read.
    """
    found: dict[str, tuple[int, int, int]] = {}
    dtypes = set()
    facts_key, facts = None, _Facts(0, ())
    values: list[Sequence[float]] = []
    descriptor = stream.fileno()
    size = os.fstat(descriptor).st_size
    for member in walk_members(descriptor, size, shown):
        key, part = _sample_of(member, shown)
        if part == FACTS_FIELD:
            facts_key, facts = key, _read_facts(descriptor, member, shown, n_values)
        elif part == TOKENS_FIELD:
            if facts_key != key:
                raise DataError(f"{shown}: document {key!r} has no {FACTS_FIELD} before its tokens. {_REMEDY}")
            if key in found:
                raise DataError(f"{shown} holds document {key!r} twice. {_REMEDY}")
            header_bytes, count, dtype = _array_header(descriptor, member, shown)
            found[key] = (member.offset + header_bytes, count, facts.n_bytes)
            values.append(facts.values)
            dtypes.add(dtype)
    if not found:
        raise DataError(f"{shown} holds no document: no member's name ends in .{TOKENS_FIELD}. {_REMEDY}")
    if len(dtypes) > 1:
        raise DataError(f"{shown} mixes tokens of types {', '.join(sorted(dtypes))}. {_REMEDY}")
    offsets, n_tokens, n_bytes = np.array(list(found.values()), dtype=np.int64).T.copy()
    dtype = dtypes.pop()
    return ShardIndex(
        offsets=offsets,
        sizes=n_tokens * np.dtype(dtype).itemsize,
        n_tokens=n_tokens,
        n_bytes=n_bytes,
        size=size,
        checksum=file_checksum(stream),
        edges=edge_checksum(descriptor, int(offsets[0]), int(offsets[-1])),
        dtype=dtype,
        keys=tuple(found),
        values=np.array(values, dtype=np.float64) if n_values else None,
    )


def edge_checksum(descriptor: int, first_offset: int, last_offset: int) -> str:
    """Checksum of the surroundings of the first and the last document: their tar headers and some of their content.

    Args:
        descriptor: Of the open tar.
        first_offset: First byte of the first document.
        last_offset: First byte of the last document.

    Returns:
        xxh3-128 as hexadecimal digits.
    """
    digest = xxhash.xxh3_128()
    for offset in (first_offset, last_offset):
        start = max(0, offset - 2 * BLOCK)
        digest.update(os.pread(descriptor, _EDGE_BYTES, start))
    return digest.hexdigest()


def file_checksum(stream: BinaryIO) -> str:
    """Checksum of a whole file.

    Args:
        stream: The open file; read from its start to its end.

    Returns:
        xxh3-128 as hexadecimal digits.
    """
    digest = xxhash.xxh3_128()
    stream.seek(0)
    while chunk := stream.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def _read(
    source: Path | BinaryIO,
    shown: str | None,
    names: Sequence[str],
    take: Callable[[Mapping[str, NDArray[Any]], int], Taken],
) -> Taken:
    name = shown or str(source)
    try:
        with source.open("rb") if isinstance(source, Path) else nullcontext(source) as stream:
            stored = read_arrays(stream, ("version", *names))
        version = _fact(stored, "version")
        if version not in (1, _VERSION):
            raise ValueError(f"its version is {version!r}, this program reads 1 to {_VERSION}")
        return take(stored, version)
    except FileNotFoundError:
        raise DataError(f"The index {name} is missing. {_REMEDY}") from None
    except Exception as error:  # of damage zipfile, numpy and Python's parser tell in a dozen ways
        raise DataError(f"The index {name} cannot be read: {str(error)[:200]}. {_REMEDY}") from None


def _column(stored: Mapping[str, NDArray[Any]], name: str) -> NDArray[np.int64]:
    column = stored[name]
    if column.dtype != np.int64 or column.ndim != 1:
        raise ValueError(f"{name} has shape {column.shape} and type {column.dtype}, not one dimension of int64")
    return column


def _values(stored: Mapping[str, NDArray[Any]], n_documents: int) -> NDArray[np.float64] | None:
    values = stored.get(_VALUES)
    if values is not None and (values.dtype != np.float64 or values.ndim != 2 or len(values) != n_documents):
        raise ValueError(f"{_VALUES} has shape {values.shape} and type {values.dtype}, not a row for each document")
    return values


def _fact(stored: Mapping[str, NDArray[Any]], name: str) -> Any:
    fact = stored[name]
    if fact.shape or fact.dtype.itemsize > 4 * _LONGEST_FACT:
        raise ValueError(f"{name} has shape {fact.shape} and {fact.nbytes} bytes")
    return fact.item()


def _stored_keys(stored: Mapping[str, NDArray[Any]], version: int) -> list[str] | NDArray[np.int64]:
    """The keys, or where there are none the offsets of the documents."""
    offsets = _column(stored, "offsets")
    if version == 1:
        return offsets
    content, ends = stored["keys"].tobytes(), [0, *_column(stored, "key_ends").tolist()]
    if sorted(ends) != ends or ends[-1] != len(content) or len(ends) != len(offsets) + 1:
        raise ValueError("its keys are not those of its documents")
    return [content[a:b].decode("utf-8", "surrogateescape") for a, b in pairwise(ends)]


def _keys_of_headers(descriptor: int, offsets: NDArray[np.int64], shown: str) -> list[str]:
    size = os.fstat(descriptor).st_size
    members = [member for member in walk_members(descriptor, size, shown) if member.kind == PLAIN_FILE]
    places = np.searchsorted([member.offset for member in members], offsets, side="right") - 1
    keys = []
    for place, offset in zip(places.tolist(), offsets.tolist(), strict=True):
        sample = split_name(members[place].name) if place >= 0 else None
        if sample is None or offset > members[place].offset + members[place].size:
            raise DataError(f"The index {shown} names byte {offset}, where its shard has no document. {_REMEDY}")
        keys.append(sample[0])
    return keys


def _sample_of(member: Member, shown: str) -> tuple[str, str]:
    if member.kind != PLAIN_FILE:
        if member.kind == FOLDER:
            return "", ""
        raise DataError(f"{shown}: {member.name!r} is of type {member.kind!r} in the tar, not a plain file. {_REMEDY}")
    return split_name(member.name) or ("", "")


def _read_facts(descriptor: int, member: Member, shown: str, n_values: int) -> _Facts:
    try:
        if member.size > _LARGEST_FACTS:
            raise ValueError
        facts = json.loads(os.pread(descriptor, member.size, member.offset))
        n_bytes = facts["bytes"]
        if type(n_bytes) is not int or not 0 <= n_bytes < _LARGEST_TEXT:  # True is an int too
            raise ValueError
        values = facts["values"] if n_values else ()
        if len(values) != n_values or not all(type(value) in (int, float) and isfinite(value) for value in values):
            raise ValueError
        return _Facts(n_bytes, values)
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        needed = f" and 'values' are {n_values} finite numbers" if n_values else ""
        raise DataError(
            f"{shown}: {member.name} must be a short JSON object in which 'bytes' is the length of the text in bytes, "
            f"below {_LARGEST_TEXT:,}{needed}. {_REMEDY}"
        ) from None


def _array_header(descriptor: int, member: Member, shown: str) -> tuple[int, int, str]:
    """Bytes of the header of a stored array, number of its tokens, and their type."""
    try:
        header = parse_array_header(os.pread(descriptor, min(member.size, LARGEST_HEADER), member.offset))
    except (ValueError, EOFError) as error:
        raise DataError(f"{shown}: {member.name} is not an array of numpy: {error}. {_REMEDY}") from None
    if len(header.shape) != 1 or header.dtype.str not in ("<u2", "<u4") or header.end != member.size:
        raise DataError(
            f"{shown}: {member.name} has shape {header.shape} and type {header.dtype} in {member.size} bytes; tokens "
            f"are one dimension of little-endian uint16 or uint32. {_REMEDY}"
        )
    return header.n_bytes, int(header.shape[0]), header.dtype.name
