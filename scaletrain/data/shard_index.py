"""The index beside a shard: where each document's tokens lie in the tar, and how many they are.

A shard is an ordinary tar, in which a document is the members ``KEY.json`` and ``KEY.tokens.npy``. Its index is
made by walking over the tar's headers; what a header claims is checked before it is believed.
"""

import io
import json
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from scaletrain.data.atomic import whole_file
from scaletrain.errors import DataError

TOKENS_FIELD = "tokens.npy"
FACTS_FIELD = "json"
_VERSION = 1
_BLOCK = 512
_EDGE_BYTES = 4096
_LARGEST_FACTS = 1 << 20
_REMEDY = "Copy the shard again from where it came, or build the corpus again with tools/make_shards.py."


@dataclass(frozen=True)
class ShardIndex:
    """Where the documents of one shard are.

    Attributes:
        offsets: First byte of each document's tokens in the tar (documents,), int64.
        n_tokens: Tokens of each document (documents,), int64.
        n_bytes: Bytes of each document's text in UTF-8 (documents,), int64.
        size: Of the tar, in bytes.
        checksum: xxh3-128 of the tar, as hexadecimal digits.
        edges: xxh3-128 of the tar's bytes around the headers of its first and its last document, which tells
            another tar of the same size at the price of two short reads.
        dtype: Type of the tokens, ``uint16`` or ``uint32``.
    """

    offsets: NDArray[np.int64]
    n_tokens: NDArray[np.int64]
    n_bytes: NDArray[np.int64]
    size: int
    checksum: str
    edges: str
    dtype: str

    def write(self, path: Path) -> None:
        """Writes the index, whole or not at all, as an npz file without pickles."""
        columns: dict[str, Any] = {field.name: np.asarray(getattr(self, field.name)) for field in fields(self)}
        with whole_file(path) as stream:
            np.savez(stream, version=np.asarray(_VERSION), **columns)

    @classmethod
    def read(cls, path: Path) -> "ShardIndex":
        """Reads an index.

        Args:
            path: The file that ``write`` made.

        Returns:
            The index; whether it is the one of its shard is for the reader to check.

        Raises:
            DataError: It is missing or damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                if int(stored["version"]) != _VERSION:
                    raise ValueError(f"its version is {int(stored['version'])}, this program reads {_VERSION}")
                columns = {field.name: stored[field.name] for field in fields(cls)}
            arrays = {name: columns.pop(name).astype(np.int64) for name in ("offsets", "n_tokens", "n_bytes")}
            if len({array.shape for array in arrays.values()}) != 1 or arrays["offsets"].ndim != 1:
                raise ValueError("its columns differ in length")
            return cls(**arrays, **{name: value.item() for name, value in columns.items()})
        except FileNotFoundError:
            raise DataError(f"The index {path} is missing. {_REMEDY}") from None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"The index {path} cannot be read: {error}. {_REMEDY}") from None


def index_path(shard: Path) -> Path:
    """Where the index of a shard lies: ``train-000000.index.npz`` beside ``train-000000.tar``."""
    return shard.with_name(shard.name.removesuffix(".tar") + ".index.npz")


def index_shard(path: Path) -> ShardIndex:
    """Makes the index of a shard by walking over its headers.

    Args:
        path: The tar.

    Returns:
        Its index, not yet written.

    Raises:
        DataError: The tar is truncated, holds a document whose tokens or facts cannot be understood, or none.
    """
    offsets, n_tokens, n_bytes, dtypes = [], [], [], set()
    facts_key, facts_bytes = None, 0
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            for member in _members(stream, size, path):
                key, _, field = member.name.partition(".")
                if field == FACTS_FIELD:
                    facts_key, facts_bytes = key, _text_bytes(stream, member, path)
                elif field == TOKENS_FIELD:
                    if facts_key != key:
                        raise DataError(f"{path}: document {key!r} has no {FACTS_FIELD} before its tokens. {_REMEDY}")
                    header_bytes, count, dtype = _array_header(stream, member, path)
                    offsets.append(member.offset + header_bytes)
                    n_tokens.append(count)
                    n_bytes.append(facts_bytes)
                    dtypes.add(dtype)
            if not offsets:
                raise DataError(f"{path} holds no document: no member's name ends in .{TOKENS_FIELD}. {_REMEDY}")
            if len(dtypes) > 1:
                raise DataError(f"{path} mixes tokens of types {', '.join(sorted(dtypes))}. {_REMEDY}")
            edges = edge_checksum(stream.fileno(), offsets[0], offsets[-1])
            checksum = _checksum(stream)
    except OSError as error:
        raise DataError(f"Shard {path} cannot be read: {error.strerror}. {_REMEDY}") from None
    return ShardIndex(
        offsets=np.array(offsets, dtype=np.int64),
        n_tokens=np.array(n_tokens, dtype=np.int64),
        n_bytes=np.array(n_bytes, dtype=np.int64),
        size=size,
        checksum=checksum,
        edges=edges,
        dtype=dtypes.pop(),
    )


def edge_checksum(descriptor: int, first_offset: int, last_offset: int) -> str:
    """Checksum of the surroundings of the first and the last document: their tar headers and some of their tokens.

    Args:
        descriptor: Of the open tar.
        first_offset: First byte of the tokens of the first document.
        last_offset: First byte of the tokens of the last document.

    Returns:
        xxh3-128 as hexadecimal digits.
    """
    digest = xxhash.xxh3_128()
    for offset in (first_offset, last_offset):
        start = max(0, offset - 2 * _BLOCK)
        digest.update(os.pread(descriptor, _EDGE_BYTES, start))
    return digest.hexdigest()


class _Member(NamedTuple):
    name: str
    offset: int
    size: int


def _members(stream: io.BufferedReader, size: int, path: Path) -> Iterator[_Member]:
    """Regular files of a tar, in their order, each claim checked against the file's size."""
    offset = 0
    while True:
        header = os.pread(stream.fileno(), _BLOCK, offset)
        if len(header) < _BLOCK:
            raise DataError(f"Shard {path} is truncated: it ends at byte {size} without a tar's end mark. {_REMEDY}")
        if not header.strip(b"\0"):
            return
        length = _claimed_size(header, offset, path)
        payload = offset + _BLOCK
        if payload + length > size:
            raise DataError(
                f"Shard {path} is truncated: the member at byte {offset} ends at byte {payload + length}, the file "
                f"at byte {size}. {_REMEDY}"
            )
        kind = header[156:157]
        if kind in (b"0", b"\0"):
            yield _Member(_name(header), payload, length)
        elif kind == b"x":
            extended = os.pread(stream.fileno(), min(length, _LARGEST_FACTS), payload)
            if b" path=" in extended or b" size=" in extended:
                raise DataError(f"{path}: the member at byte {offset} has a name of over 100 bytes. Use shorter keys.")
        elif kind not in (b"g", b"5"):
            raise DataError(f"{path}: the member at byte {offset} is of type {kind!r}, not a plain file. {_REMEDY}")
        offset = payload + -(-length // _BLOCK) * _BLOCK


def _claimed_size(header: bytes, offset: int, path: Path) -> int:
    try:
        # The sum is over the header with its own field taken as spaces.
        claimed = int(header[148:156].strip(b" \0"), 8)
        if claimed != sum(header[:148]) + 8 * ord(" ") + sum(header[156:]):
            raise ValueError
        return int(header[124:136].strip(b" \0") or b"0", 8)
    except ValueError:
        raise DataError(f"{path}: there is no valid tar header at byte {offset}. {_REMEDY}") from None


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "surrogateescape")


def _text_bytes(stream: io.BufferedReader, member: _Member, path: Path) -> int:
    try:
        if member.size > _LARGEST_FACTS:
            raise ValueError
        n_bytes = json.loads(os.pread(stream.fileno(), member.size, member.offset))["bytes"]
        if not isinstance(n_bytes, int) or n_bytes < 0:
            raise ValueError
        return n_bytes
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DataError(
            f"{path}: {member.name} must be a short JSON object in which 'bytes' is the length of the text in bytes. "
            f"{_REMEDY}"
        ) from None


def _array_header(stream: io.BufferedReader, member: _Member, path: Path) -> tuple[int, int, str]:
    """Bytes of the header of a stored array, number of its tokens, and their type."""
    start = io.BytesIO(os.pread(stream.fileno(), min(member.size, _BLOCK), member.offset))
    try:
        if np.lib.format.read_magic(start) != (1, 0):
            raise ValueError("another version of the npy format")
        shape, _, dtype = np.lib.format.read_array_header_1_0(start)
    except (ValueError, EOFError) as error:
        raise DataError(f"{path}: {member.name} is not an array of numpy: {error}. {_REMEDY}") from None
    if len(shape) != 1 or dtype.str not in ("<u2", "<u4") or start.tell() + shape[0] * dtype.itemsize != member.size:
        raise DataError(
            f"{path}: {member.name} has shape {shape} and type {dtype} in {member.size} bytes; tokens are one "
            f"dimension of little-endian uint16 or uint32. {_REMEDY}"
        )
    return start.tell(), int(shape[0]), dtype.name


def _checksum(stream: io.BufferedReader) -> str:
    digest = xxhash.xxh3_128()
    stream.seek(0)
    while chunk := stream.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()
