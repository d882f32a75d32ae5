"""Writes documents into shards: WebDataset tars of a bounded size, each with its index."""

import contextlib
import json
import logging
import os
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import xxhash

from scaletrain.corpus.pipeline import Kept
from scaletrain.data.manifest import ShardEntry
from scaletrain.data.shard_index import FACTS_FIELD, TOKENS_FIELD, index_path, index_shard
from scaletrain.files import whole_file

logger = logging.getLogger(__name__)

_BLOCK = tarfile.BLOCKSIZE
_TEXT_FIELD = "txt"


class ShardSink(contextlib.AbstractContextManager["ShardSink"]):
    """Takes the documents of one split; a shard that an error cuts short leaves nothing behind.

    Attributes:
        entries: What the manifest says of the shards that are finished.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        shard_tokens: int,
        entries: Sequence[ShardEntry] = (),
        on_finished: Callable[[ShardEntry, str, int], None] = lambda entry, split, until: None,
    ) -> None:
        """Writes nothing yet.

        Args:
            folder: Where the shards go.
            split: First part of their names.
            shard_tokens: A shard is finished as soon as it has this many tokens.
            entries: Shards that are there already.
            on_finished: Called with each shard that is finished, its split, and the ordinal after its last document's.
        """
        self.folder = folder
        self.split = split
        self.shard_tokens = shard_tokens
        self.entries = list(entries)
        self._on_finished = on_finished
        self._documents = sum(entry.documents for entry in entries)
        self._tokens = 0
        self._n_values = 0
        self._until = 0
        self._stream: BinaryIO | None = None
        self._file = contextlib.ExitStack()

    def add(self, kept: Kept) -> None:
        """Appends a document.

        Args:
            kept: Where it comes from, its tokens, and its text where that is stored too.
        """
        if self._stream is None:
            self._stream = self._file.enter_context(whole_file(self._path))
        worked = kept.worked
        # Linux lets a name be any bytes; what is no UTF-8 of it must not end the build.
        source = kept.source.encode(errors="backslashreplace").decode()
        facts: dict[str, Any] = {"source": source, "bytes": worked.n_bytes}
        if worked.values:
            facts["values"] = worked.values
        self._n_values = len(worked.values)  # of each document as many
        key = f"{self._documents:010d}"
        self._stream.write(_member(f"{key}.{FACTS_FIELD}", json.dumps(facts, ensure_ascii=False).encode()))
        self._stream.write(_member(f"{key}.{TOKENS_FIELD}", worked.tokens))
        if worked.text is not None:
            self._stream.write(_member(f"{key}.{_TEXT_FIELD}", worked.text.encode()))
        self._documents += 1
        self._tokens += worked.n_tokens
        self._until = kept.ordinal + 1
        if self._tokens >= self.shard_tokens:
            self._finish()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._file.__exit__(kind, error, trace)
        elif self._stream is not None:
            self._finish()

    @property
    def _path(self) -> Path:
        return self.folder / f"{self.split}-{len(self.entries):06d}.tar"

    def _finish(self) -> None:
        assert self._stream is not None
        path = self._path
        # Two empty blocks end a tar, and it is filled up to a whole record.
        end = self._stream.tell() + 2 * _BLOCK
        self._stream.write(bytes(2 * _BLOCK + -end % tarfile.RECORDSIZE))
        self._file.close()
        self._stream, self._tokens = None, 0
        # Made from the file as it is read, not from what was meant to be written.
        index = index_shard(path, self._n_values)
        index.write(index_path(path))
        content = index_path(path).read_bytes()
        entry = ShardEntry(
            path=path.name,
            size=index.size,
            checksum=index.checksum,
            index_size=len(content),
            index_checksum=xxhash.xxh3_128_hexdigest(content),
            longest=int(index.n_tokens.max()),
            documents=len(index.offsets),
            tokens=int(index.n_tokens.sum()),
            bytes=int(index.n_bytes.sum()),
        )
        _make_names_durable(self.folder)
        self.entries.append(entry)
        self._on_finished(entry, self.split, self._until)
        logger.info("%s: %s documents, %s tokens", path.name, f"{entry.documents:,}", f"{entry.tokens:,}")


def _template() -> bytes:
    """Header of a file that anybody may read, with no owner and no time, so that equal corpora make equal files."""
    header = tarfile.TarInfo()
    header.mode = 0o444
    return header.tobuf(tarfile.USTAR_FORMAT)


_HEADER = _template()


def _member(name: str, content: bytes) -> bytes:
    """A plain file of a tar: header, content, filling. Fifty times as fast as by tarfile, which this loop needs."""
    header = bytearray(_HEADER)
    encoded = name.encode("ascii")
    header[: len(encoded)] = encoded
    header[124:136] = b"%011o\0" % len(content)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return b"".join((header, content, bytes(-len(content) % _BLOCK)))


def _make_names_durable(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
