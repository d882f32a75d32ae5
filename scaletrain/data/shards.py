"""Reads ranges of tokens out of the shards of one source, by positioned reads at the places that the index names."""

import io
import logging
import os
import resource
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from scaletrain.data.foreign import DocumentDecoder
from scaletrain.data.index_check import check_index
from scaletrain.data.lru import LastUsed, LastUsedArrays
from scaletrain.data.manifest import NATIVE_FIELD, Manifest, ShardEntry, check_size
from scaletrain.data.packing import Row
from scaletrain.data.parts import split_parts
from scaletrain.data.shard_index import ShardIndex, edge_checksum
from scaletrain.data.tokenizer import Borders, parse_tokenizer
from scaletrain.errors import BadShardError, CacheError, DataError, UnreachableError
from scaletrain.storage.storage import Storage
from scaletrain.storage.urls import is_remote, printable

logger = logging.getLogger(__name__)

_REMEDY = "Copy shard and index again from where they came, or build the corpus again with tools/make_shards.py."
_LARGEST_INDEX = 1 << 30
# Of decoded documents that are held: those of a lane's window come back, one after the other or shuffled by packing.
_DECODED_BYTES = 1 << 28
_MOST_OPEN = 4096  # a window of eight shards for each of 512 lanes
_OTHERS_LOOKED_AT = 3
_MOST_CHECKED = 1000  # shards opened before a run; each costs about a millisecond


Wanted = tuple[str, int, str]
"""Location, size and checksum of a file that will be needed."""


@dataclass(frozen=True)
class _OpenShard:
    path: str
    stream: io.FileIO
    descriptor: int
    index: ShardIndex

    @property
    def is_evicted(self) -> bool:
        return os.fstat(self.descriptor).st_nlink == 0


class ShardReader:
    """The documents of the shards of one split.

    Files are opened when they are first read, and the one used longest ago is closed when there are too many.
    A reader may be used on both sides of a fork: positioned reads leave no trace in a shared descriptor.
    """

    def __init__(
        self,
        manifest: Manifest,
        split: str,
        storage: Storage | None = None,
        name: str | None = None,
        max_open: int | None = None,
    ) -> None:
        """Opens nothing yet.

        Args:
            manifest: The corpus.
            split: ``train``, ``validation`` or ``test``.
            storage: Opens what is not a local file.
            name: Of the source, for messages; the manifest's location by default.
            max_open: Shards that are open at once, with their indexes in memory; by default as many as a quarter of
                what the system allows a process. With fewer than are in use each sequence would open some anew.

        Raises:
            DataError: The split is empty.
        """
        self.manifest = manifest
        self.shards: Sequence[ShardEntry] = manifest.split(split)
        self.name = name or manifest.shown
        self.dtype = manifest.token_dtype
        self.max_open = max_open or _most_open()
        self.storage = storage or Storage()
        self._open: LastUsed[int, _OpenShard] = LastUsed(self.max_open)
        self._keys: LastUsed[int, Sequence[str]] = LastUsed(self.max_open)
        self._is_native = manifest.content.field == NATIVE_FIELD
        self._decoder: DocumentDecoder | None = None
        self._documents: LastUsedArrays[tuple[int, int]] = LastUsedArrays(_DECODED_BYTES)
        self.is_remote = any(is_remote(manifest.locate(shard.path)) for shard in self.shards)

    def __getstate__(self) -> dict[str, Any]:
        # Open files do not travel to another process; it opens its own.
        return {**self.__dict__, "_open": LastUsed(self.max_open), "_documents": LastUsedArrays(_DECODED_BYTES)}

    def find_bad(self) -> Iterator[BadShardError]:
        """Opens shards, so that a damaged one is found before the run begins and not in its middle.

        Reads the indexes and the edges of local shards, about a millisecond each, not their content; of many shards
        some that are spread evenly. Remote ones are checked whole when they arrive.

        Yields:
            What is wrong with a shard: it or its index is missing or damaged, or one is not the other's.
        """
        local = [number for number, shard in enumerate(self.shards) if not is_remote(self.manifest.locate(shard.path))]
        step = -(-len(local) // _MOST_CHECKED) if local else 1
        if step > 1:
            logger.info("checked the indexes of every %d-th of %d shards of %s", step, len(local), self.name)
        for number in local[::step]:
            try:
                self._open_shard(number)
            except BadShardError as error:
                yield error

    def check(self) -> None:
        """Raises the first that ``find_bad`` finds.

        Raises:
            BadShardError: A shard or its index is missing or damaged, or one is not the other's.
        """
        for error in self.find_bad():
            raise error

    def token_counts(self, shard: int) -> NDArray[np.int64]:
        """Tokens of each document of a shard (documents,), int64.

        Raises:
            BadShardError: The index is missing or damaged, or another shard's.
        """
        return self._index(shard).n_tokens

    def all_values(self, shard: int) -> NDArray[np.float64]:
        """The numbers of all documents of a shard (documents, m), from its index alone: see ``values``.

        Raises:
            BadShardError: The index is missing or damaged, or another shard's.
        """
        values = self._index(shard).values
        return np.zeros((self.shards[shard].documents, 0)) if values is None else values

    def _index(self, shard: int) -> ShardIndex:
        """The index of a shard, which itself is not fetched for it."""
        return self._shard(shard).index if shard in self._open else self._read_index(shard)

    def tokens(self, shard: int, document: int, start: int, stop: int) -> NDArray[np.unsignedinteger]:
        """Reads a range of tokens of a document.

        Args:
            shard: Index of the shard in its split.
            document: Index of the document in its shard.
            start: First token of the range.
            stop: First token after it.

        Returns:
            Array (stop - start,) of the stored type, without the parts of a corpus that has some.

        Raises:
            BadShardError: The shard or its index is missing or damaged, or one is not the other's.
            IndexError: The document does not hold that range.
        """
        counts = self._shard(shard).index.n_tokens
        if not (0 <= document < len(counts) and 0 <= start <= stop <= counts[document]):
            raise IndexError(f"document {document} of {self._shard(shard).path} has no tokens {start} to {stop}")
        found = np.empty(stop - start, dtype=self.dtype)
        self.read_row(found, [(shard, document, start, stop)])
        return split_parts(found)[0] if self.manifest.parts else found

    def values(self, shard: int, document: int) -> NDArray[np.float64]:
        """The numbers of a document: see ``Manifest.values``.

        Args:
            shard: Index of the shard in its split.
            document: Index of the document in its shard.

        Returns:
            Array (m,), finite; m is 0 where the corpus has none.

        Raises:
            BadShardError: The shard or its index is missing or damaged, or one is not the other's.
            IndexError: The shard has no such document.
        """
        values = self._shard(shard).index.values
        return np.zeros(0) if values is None else values[document]

    def read_row(
        self, out: NDArray[np.unsignedinteger], pieces: Iterable[Sequence[int]], left_out: Collection[int] = ()
    ) -> Row:
        """Reads pieces of documents into a row, one behind the other.

        Args:
            out: The row, contiguous, of the stored type; tokens with their parts where the corpus has some.
            pieces: Each as shard, document, start and stop, within what the shards' indexes hold.
            left_out: Shards that are not read; the places of their pieces stay as they are.

        Returns:
            Where the pieces lie.

        Raises:
            BadShardError: A shard or its index is missing or damaged, or one is not the other's.
        """
        begins: list[int] = []
        masked: list[tuple[int, int]] = []
        place, width, row = 0, self.dtype.itemsize, out.data.cast("B")
        for shard, document, start, stop in pieces:
            end = place + stop - start
            begins.append(place)
            if left_out and shard in left_out:
                masked.append((place, end))
            elif self._is_native:
                opened = self._shard(shard)
                offset = opened.index.offsets.item(document) + start * width
                self._read_stored(row[place * width : end * width], shard, opened, offset)
            else:
                out[place:end] = self._decoded(shard, document)[start:stop]
            place = end
        return Row(begins, place, masked)

    def _read_stored(self, out: memoryview, shard: int, opened: _OpenShard, offset: int) -> None:
        try:
            found = os.preadv(opened.descriptor, (out,), offset)
        except OSError as error:
            raise self._bad(shard, f"Shard {opened.path} cannot be read at byte {offset}: {error.strerror}.") from None
        if found != len(out):
            raise self._bad(
                shard,
                f"Shard {opened.path} is truncated: {len(out)} bytes were wanted at byte {offset}, {found} are there. "
                f"{_REMEDY}",
            )

    def _decoded(self, shard: int, document: int) -> NDArray[np.unsignedinteger]:
        """All tokens of a document that is decoded; its next piece is in the lane's next sequence."""
        return self._documents.get((shard, document), lambda: self._decode(shard, document))

    def _decode(self, shard: int, document: int) -> NDArray[np.unsignedinteger]:
        if self._decoder is None:
            entry = self.manifest.tokenizer
            tokenizer = parse_tokenizer(self.manifest.read_tokenizer(self.storage), self.manifest.shown)
            borders = Borders(entry.eos_id, entry.bos_id)
            self._decoder = DocumentDecoder(self.manifest.content, tokenizer, borders, self.dtype, entry.vocab_size)
        opened = self._shard(shard)
        offset, size, n_tokens = (
            int(column[document]) for column in (opened.index.offsets, opened.index.sizes, opened.index.n_tokens)
        )
        try:
            return self._decoder.read(opened.descriptor, offset, size, n_tokens, opened.path)
        except DataError as error:
            raise self._bad(shard, str(error)) from None

    def release_evicted(self) -> None:
        """Closes what the cache has deleted: it would keep its place on the disk for as long as it is open here."""
        self._open.forget(lambda opened: opened.is_evicted)

    def release(self) -> None:
        """Closes all shards, until one is read again."""
        self._open.forget(lambda opened: True)

    def can_read_others(self, shard: int) -> bool:
        """Whether any of some other shards can be read now, so that it is this one that is bad and not its storage."""
        others = [other for other in range(len(self.shards)) if other != shard]
        looked_at = others[:: max(1, len(others) // _OTHERS_LOOKED_AT)]
        return not others or any(self.storage.is_readable(self.manifest.locate(self.shards[i].path)) for i in looked_at)

    def keys(self, shard: int) -> Sequence[str]:
        """Keys of the documents of a shard, in their order.

        Raises:
            BadShardError: The index is missing or damaged, or has none.
        """
        return self._keys.get(shard, lambda: self._read_keys(shard))

    def describe(self, shard: int) -> str:
        """The shard's path or URL, as it may be shown."""
        return printable(self.manifest.locate(self.shards[shard].path))

    def wanted(self, shards: Sequence[int]) -> list[Wanted]:
        """What has to be here before a window of shards can be read: first all indexes, then the shards."""
        entries = [self.shards[shard] for shard in shards]
        indexes = [
            (self._index_location(entry), entry.index_size, entry.index_checksum)
            for entry in entries
            if entry.index_size is not None and entry.index_checksum is not None
        ]
        return [*indexes, *((self.manifest.locate(entry.path), entry.size, entry.checksum) for entry in entries)]

    def _bad(self, shard: int, message: str | DataError, of_index: bool = False) -> BadShardError:
        may_pass = isinstance(message, UnreachableError)
        return BadShardError(str(message), self.name, shard, of_index, may_pass)

    def _shard(self, shard: int) -> _OpenShard:
        return self._open.get(shard, lambda: self._open_shard(shard))

    def _open_shard(self, shard: int) -> _OpenShard:
        self.release_evicted()
        entry = self.shards[shard]
        path = self.manifest.locate(entry.path)
        shown = printable(path)
        index = self._read_index(shard)
        try:
            if not is_remote(path):
                check_size(path, index.size, "its index")
            stream = self.storage.open(path, entry.size, entry.checksum)
        except CacheError:
            raise
        except DataError as error:
            raise self._bad(shard, error) from None
        try:
            found = edge_checksum(stream.fileno(), int(index.offsets[0]), int(index.offsets[-1]))
        except OSError as error:
            raise self._bad(shard, f"Shard {shown} cannot be read: {error.strerror}. {_REMEDY}") from None
        if found != index.edges:
            raise self._bad(
                shard,
                f"Shard {shown} is not the one that its index was made from: the checksum around its first and last "
                f"document is {found}, the index says {index.edges}. {_REMEDY}",
            )
        return _OpenShard(shown, stream, stream.fileno(), index)

    def _read_index(self, shard: int) -> ShardIndex:
        entry = self.shards[shard]
        try:
            with self._index_stream(entry) as stream:
                index = ShardIndex.read(stream, self._index_location(entry, shown=True))
            check_index(self._index_location(entry, shown=True), index, entry, self.manifest)
        except CacheError:
            raise
        except DataError as error:
            raise self._bad(shard, error, of_index=True) from None
        return index

    def _read_keys(self, shard: int) -> Sequence[str]:
        descriptor = self._shard(shard).descriptor
        entry = self.shards[shard]
        with self._index_stream(entry) as stream:
            return ShardIndex.read_keys(stream, self._index_location(entry, shown=True), descriptor)

    def _index_location(self, entry: ShardEntry, shown: bool = False) -> str:
        location = self.manifest.locate(entry.index or entry.path.removesuffix(".tar") + ".index.npz")
        return printable(location) if shown else location

    def _index_stream(self, entry: ShardEntry) -> BinaryIO:
        location = self._index_location(entry)
        if is_remote(location) and entry.index_size is not None and entry.index_checksum is not None:
            return cast(BinaryIO, self.storage.open(location, entry.index_size, entry.index_checksum))
        try:
            return io.BytesIO(self.storage.read(location, _LARGEST_INDEX, "The index"))
        except UnreachableError:
            raise
        except DataError as error:
            raise DataError(f"{error} {_REMEDY}") from None


def _most_open() -> int:
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _MOST_OPEN if allowed == resource.RLIM_INFINITY else max(1, min(_MOST_OPEN, allowed // 4))
