"""Indexes one shard that was made elsewhere, where it lies: every document is decoded once, and its tokens counted."""

import os
from collections import Counter
from dataclasses import astuple, dataclass
from typing import BinaryIO, Literal

import numpy as np

from scaletrain.data.foreign import DocumentDecoder, UnusableDocument, fits
from scaletrain.data.manifest import NATIVE_FIELD, Content
from scaletrain.data.shard_index import ShardIndex, edge_checksum, file_checksum, index_tokens
from scaletrain.data.tar_members import FOLDER, PLAIN_FILE, Member, split_name, walk_members
from scaletrain.data.tokenizer import Borders
from scaletrain.errors import DataError

OnBadDocument = Literal["fail", "skip"]
_FIELDS_TOLD = 5
_SKIP = "Correct it, or leave out such documents with --on_bad_document skip."


@dataclass(frozen=True)
class Indexed:
    """An index, not yet written, and what was left out: how often, by reason."""

    index: ShardIndex
    skipped: Counter[str]


@dataclass
class _Sample:
    """A document that was decoded."""

    offset: int
    size: int
    n_tokens: int
    n_bytes: int


def index_foreign(
    stream: BinaryIO, shown: str, content: Content, decoder: DocumentDecoder, dtype: str, on_bad_document: OnBadDocument
) -> Indexed:
    """Indexes a shard whose documents are decoded when they are read.

    Members of a sample may come in any order, with those of others between them: only the one that is wanted matters.

    Args:
        stream: The open tar.
        shown: Its path, for messages.
        content: What a document is.
        decoder: Of that content; training decodes with the same.
        dtype: Of the tokens that it gives.
        on_bad_document: Whether a document that cannot be decoded ends the work, or is left out and counted.

    Returns:
        The index. Left out, and counted, are samples without the field, empty documents, and members that are no plain
        files.

    Raises:
        DataError: The tar is damaged, a sample has the wanted field twice, a document cannot be decoded, or there is
            none.
        OSError: The tar cannot be read.
    """
    descriptor = stream.fileno()
    size = os.fstat(descriptor).st_size
    skipped: Counter[str] = Counter()
    found: dict[str, _Sample] = {}
    for key, member in _wanted_members(descriptor, size, shown, content, skipped).items():
        sample = _decode(descriptor, member, shown, decoder, on_bad_document, skipped)
        if sample is not None:
            found[key] = sample
    if not found:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items())) or "it is empty"
        raise DataError(f"{shown} gives no document in field {content.field!r}: {reasons}. Check --field and --key.")
    columns = np.array([astuple(sample) for sample in found.values()], dtype=np.int64)
    offsets, sizes, n_tokens, n_bytes = columns.T.copy()
    edges = edge_checksum(descriptor, int(offsets[0]), int(offsets[-1]))
    checksum = file_checksum(stream)
    index = ShardIndex(offsets, sizes, n_tokens, n_bytes, size, checksum, edges, dtype, content, tuple(found))
    return Indexed(index, skipped)


def _wanted_members(
    descriptor: int, size: int, shown: str, content: Content, skipped: Counter[str]
) -> dict[str, Member]:
    """For each key the member that is the document, in the order of the tar; samples without one are counted."""
    wanted: dict[str, Member] = {}
    keys: set[str] = set()
    fields: Counter[str] = Counter()
    for member in walk_members(descriptor, size, shown):
        if member.kind != PLAIN_FILE:
            if member.kind != FOLDER:
                skipped["link, device or the like"] += 1
            continue
        name = split_name(member.name)
        if name is None:
            continue
        key, field = name
        keys.add(key)
        if len(fields) < _FIELDS_TOLD or field in fields:
            fields[field] += 1
        if not fits(field, content):
            continue
        if key in wanted:
            raise DataError(
                f"{shown}: sample {key!r} has field {content.field!r} twice, the second time as {member.name!r}. "
                "Name the field in full, and give each sample a key of its own."
            )
        wanted[key] = member
    if not wanted:
        has = ", ".join(f"{count} {field!r}" for field, count in fields.most_common()) or "none"
        raise DataError(f"{shown} has no field {content.field!r}; its fields are: {has}. Check --field.")
    if len(keys) > len(wanted):
        skipped[f"sample without {content.field}"] = len(keys) - len(wanted)
    return wanted


def index_native(stream: BinaryIO, shown: str, dtype: str, vocab_size: int, borders: Borders) -> Indexed:
    """Indexes a shard as this program writes it, whose tokens are read as they lie there.

    Args:
        stream: The open tar.
        shown: Its path, for messages.
        dtype: That the tokens must have.
        vocab_size: Tokens are below it.
        borders: Tokens that mark where a document begins and ends.

    Returns:
        The index.

    Raises:
        DataError: The tar is damaged, or its documents are not what this program writes with that tokenizer.
        OSError: The tar cannot be read.
    """
    remedy = (
        f"Tokens that another program wrote are decoded when they are read: give --field '*.npy', not {NATIVE_FIELD}."
    )
    try:
        index = index_tokens(stream, shown)
    except DataError as error:
        raise DataError(f"{error} {remedy}") from None
    if index.dtype != dtype:
        raise DataError(f"{shown} has tokens of type {index.dtype}, where the tokenizer needs {dtype}. {remedy}")
    assert index.keys is not None
    for key, offset, size in zip(index.keys, index.offsets.tolist(), index.sizes.tolist(), strict=True):
        tokens = np.frombuffer(os.pread(stream.fileno(), size, offset), dtype=np.dtype(dtype).newbyteorder("<"))
        if not len(tokens) or tokens[-1] != borders.eos_id:
            raise DataError(f"{shown}: document {key!r} does not end with token {borders.eos_id}. {remedy}")
        if tokens.max() >= vocab_size:
            raise DataError(
                f"{shown}: document {key!r} holds token {tokens.max()}, but those of the tokenizer are 0 to "
                f"{vocab_size - 1}. Give the tokenizer that made them."
            )
    return Indexed(index, Counter())


def _decode(
    descriptor: int,
    member: Member,
    shown: str,
    decoder: DocumentDecoder,
    on_bad_document: OnBadDocument,
    skipped: Counter[str],
) -> _Sample | None:
    try:
        tokens, n_bytes = decoder.decode(descriptor, member.offset, member.size, f"{shown}, {member.name!r}")
    except UnusableDocument as error:
        if not error.is_absent and on_bad_document == "fail":
            raise DataError(f"{error} {_SKIP}") from None
        skipped[f"document {error.reason}"] += 1
        return None
    return _Sample(member.offset, member.size, len(tokens), n_bytes)
