"""Writes documents into shards: WebDataset tars of a bounded size, each with its index."""

import contextlib
import logging
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import webdataset
from numpy.typing import NDArray

from scaletrain.data.atomic import whole_file
from scaletrain.data.corpus import Document
from scaletrain.data.manifest import ShardEntry
from scaletrain.data.shard_index import FACTS_FIELD, TOKENS_FIELD, index_path, index_shard

logger = logging.getLogger(__name__)


class ShardSink(contextlib.AbstractContextManager["ShardSink"]):
    """Takes the documents of one split; a shard that an error cuts short leaves nothing behind.

    Attributes:
        entries: What the manifest says of the shards that are finished.
    """

    def __init__(self, folder: Path, split: str, shard_tokens: int) -> None:
        """Writes nothing yet.

        Args:
            folder: Where the shards go.
            split: First part of their names.
            shard_tokens: A shard is finished as soon as it has this many tokens.
        """
        self.folder = folder
        self.split = split
        self.shard_tokens = shard_tokens
        self.entries: list[ShardEntry] = []
        self._documents = 0
        self._tokens = 0
        self._writer: Any = None
        self._file = contextlib.ExitStack()

    def add(self, document: Document, tokens: NDArray[np.unsignedinteger]) -> None:
        """Appends a document.

        Args:
            document: Where it comes from, and its text, of which the length is kept.
            tokens: Its tokens with those that mark its borders (n,), uint16 or uint32.
        """
        if self._writer is None:
            stream = self._file.enter_context(whole_file(self._path))
            # An integer for the time, since with a fraction of a second each member would get an extended header
            # of 1 KiB; and a fixed one, so that equal corpora make equal files.
            self._writer = webdataset.TarWriter(stream, mtime=0)
        facts = {"source": document.source, "bytes": len(document.text.encode())}
        self._writer.write({"__key__": f"{self._documents:010d}", FACTS_FIELD: facts, TOKENS_FIELD: tokens})
        self._documents += 1
        self._tokens += len(tokens)
        if self._tokens >= self.shard_tokens:
            self._finish()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._file.__exit__(kind, error, trace)
        elif self._writer is not None:
            self._finish()

    @property
    def _path(self) -> Path:
        return self.folder / f"{self.split}-{len(self.entries):06d}.tar"

    def _finish(self) -> None:
        path = self._path
        self._writer.close()
        self._file.close()
        self._writer, self._tokens = None, 0
        # Made from the file as it is read, not from what was meant to be written.
        index = index_shard(path)
        index.write(index_path(path))
        entry = ShardEntry(
            path=path.name,
            size=index.size,
            checksum=index.checksum,
            documents=len(index.offsets),
            tokens=int(index.n_tokens.sum()),
            bytes=int(index.n_bytes.sum()),
        )
        self.entries.append(entry)
        logger.info("%s: %s documents, %s tokens", path.name, f"{entry.documents:,}", f"{entry.tokens:,}")
