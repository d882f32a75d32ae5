"""Reads ranges of tokens out of shards, by positioned reads at the places that the index names."""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scaletrain.data.lru import LastUsed
from scaletrain.data.manifest import Manifest, ShardEntry, check_size
from scaletrain.data.shard_index import ShardIndex, edge_checksum, index_path
from scaletrain.errors import DataError

_REMEDY = "Copy shard and index again from where they came, or build the corpus again with tools/make_shards.py."


@dataclass(frozen=True)
class _OpenShard:
    path: Path
    stream: io.FileIO
    index: ShardIndex


class ShardReader:
    """The documents of the shards of one split.

    Files are opened when they are first read, and the one used longest ago is closed when there are too many.
    A reader may be used on both sides of a fork: positioned reads leave no trace in a shared descriptor.
    """

    def __init__(
        self, folder: Path, shards: Sequence[ShardEntry], dtype: np.dtype[np.unsignedinteger], max_open: int = 128
    ) -> None:
        """Opens nothing yet.

        Args:
            folder: Where the shards' paths begin.
            shards: What the manifest says of each.
            dtype: Type of the stored tokens.
            max_open: Shards that are open at once, with their indexes in memory.
        """
        self.folder = folder
        self.shards = shards
        self.dtype = dtype
        self.max_open = max_open
        self._open: LastUsed[int, _OpenShard] = LastUsed(max_open)

    @classmethod
    def of_split(cls, manifest: Manifest, split: str) -> "ShardReader":
        """A reader of one split of a corpus.

        Args:
            manifest: The corpus.
            split: ``train`` or ``validation``.

        Returns:
            The reader.

        Raises:
            DataError: The split is empty.
        """
        return cls(manifest.folder, manifest.split(split), manifest.token_dtype)

    def __getstate__(self) -> dict[str, Any]:
        # Open files do not travel to another process; it opens its own.
        return {**self.__dict__, "_open": LastUsed(self.max_open)}

    def check(self) -> None:
        """Opens every shard once, so that a damaged one is found before the run begins and not in its middle.

        Reads the indexes and the edges of the shards, about a millisecond each, not their content.

        Raises:
            DataError: A shard or its index is missing or damaged, or one is not the other's.
        """
        for entry in self.shards:
            self._open_shard(entry)

    def token_counts(self, shard: int) -> NDArray[np.int64]:
        """Tokens of each document of a shard (documents,), int64."""
        return self._shard(shard).index.n_tokens

    def byte_counts(self, shard: int) -> NDArray[np.int64]:
        """Bytes of the text of each document of a shard (documents,), int64."""
        return self._shard(shard).index.n_bytes

    def tokens(self, shard: int, document: int, start: int, stop: int) -> NDArray[np.unsignedinteger]:
        """Reads a range of tokens of a document.

        Args:
            shard: Index of the shard in its split.
            document: Index of the document in its shard.
            start: First token of the range.
            stop: First token after it.

        Returns:
            Array (stop - start,) of the stored type.

        Raises:
            DataError: The shard or its index is missing or damaged, or one is not the other's.
            IndexError: The document does not hold that range.
        """
        opened = self._shard(shard)
        if not 0 <= start <= stop <= opened.index.n_tokens[document]:
            raise IndexError(f"document {document} of {opened.path} has no tokens {start} to {stop}")
        offset = int(opened.index.offsets[document]) + start * self.dtype.itemsize
        wanted = (stop - start) * self.dtype.itemsize
        found = self._read(opened, wanted, offset)
        if len(found) != wanted:
            raise DataError(
                f"Shard {opened.path} is truncated: {wanted} bytes were wanted at byte {offset}, {len(found)} are "
                f"there. {_REMEDY}"
            )
        return np.frombuffer(found, dtype=self.dtype)

    def _read(self, opened: _OpenShard, wanted: int, offset: int) -> bytes:
        try:
            return os.pread(opened.stream.fileno(), wanted, offset)
        except OSError as error:
            raise DataError(f"Shard {opened.path} cannot be read at byte {offset}: {error.strerror}.") from None

    def _shard(self, shard: int) -> _OpenShard:
        return self._open.get(shard, lambda: self._open_shard(self.shards[shard]))

    def _open_shard(self, entry: ShardEntry) -> _OpenShard:
        path = self.folder / entry.path
        index = ShardIndex.read(index_path(path))
        _check_index(path, index, entry, self.dtype)
        check_size(path, index.size, "its index")
        try:
            stream = io.FileIO(path)
        except OSError as error:
            raise DataError(f"Shard {path} cannot be opened: {error.strerror}. {_REMEDY}") from None
        found = edge_checksum(stream.fileno(), int(index.offsets[0]), int(index.offsets[-1]))
        if found != index.edges:
            raise DataError(
                f"Shard {path} is not the one that {index_path(path).name} was made from: the checksum around its "
                f"first and last document is {found}, the index says {index.edges}. {_REMEDY}"
            )
        return _OpenShard(path, stream, index)


def _check_index(path: Path, index: ShardIndex, entry: ShardEntry, dtype: np.dtype[np.unsignedinteger]) -> None:
    facts = {
        "size": (index.size, entry.size),
        "checksum": (index.checksum, entry.checksum),
        "documents": (len(index.offsets), entry.documents),
        "tokens": (int(index.n_tokens.sum()), entry.tokens),
        "dtype": (index.dtype, dtype.name),
    }
    for name, (found, expected) in facts.items():
        if found != expected:
            raise DataError(
                f"{index_path(path)} is not the index of {path.name}: its {name} is {found}, the manifest says "
                f"{expected}. {_REMEDY}"
            )
    ends = index.offsets + index.n_tokens * dtype.itemsize
    if not len(ends) or int(index.offsets.min()) < 0 or int(index.n_tokens.min()) < 0 or int(ends.max()) > index.size:
        raise DataError(f"{index_path(path)} names places outside of {path.name}, of {index.size} bytes. {_REMEDY}")
