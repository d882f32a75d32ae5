"""Corpora whose tokens say where they stand: in memory, and as tars on a disk."""

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import numpy as np
import webdataset
from numpy.typing import NDArray

from scaletrain.data.manifest import Manifest, ShardEntry, TokenizerEntry, totals_of
from scaletrain.data.packing import Row
from scaletrain.data.shard_index import index_path, index_shard
from scaletrain.data.shards import ShardReader
from scaletrain.errors import BadShardError
from tests.data.reference_order import EOS, Lengths, best_fit, token

TOKENIZER = TokenizerEntry(file="tokenizer.json", sha256="0" * 64, vocab_size=2**14, eos_id=EOS)


def manifest_of(shards: tuple[ShardEntry, ...], location: str = "/nowhere/manifest.json") -> Manifest:
    return Manifest(
        location=location,
        source="invented",
        dtype="uint16",
        tokenizer=TOKENIZER,
        splits={"train": shards},
        totals={"train": totals_of(shards)},
    )


def packed_counts(shard: tuple[int, ...], max_seq_lens: tuple[int, ...]) -> dict[int, int]:
    return {max_seq_len: len(best_fit(0, shard, max_seq_len)) for max_seq_len in max_seq_lens}


class MemoryReader(ShardReader):
    """A source without files; notes which shards were opened, and can have lost some."""

    def __init__(self, source: int, shards: Lengths, max_seq_len: int) -> None:
        entries = tuple(
            ShardEntry(
                path=f"{number}.tar",
                size=1,
                checksum="",
                documents=len(shard),
                tokens=sum(shard),
                bytes=0,
                packed=packed_counts(shard, (max_seq_len,)),
            )
            for number, shard in enumerate(shards)
        )
        super().__init__(manifest_of(entries), "train", name=f"source {source}")
        self.source = source
        self.lengths = shards
        self.opened: set[int] = set()
        self.lost_content: set[int] = set()
        self.lost_indexes: set[int] = set()

    def token_counts(self, shard: int) -> NDArray[np.int64]:
        self.opened.add(shard)
        if shard in self.lost_indexes:
            raise BadShardError(f"the index of shard {shard} is lost", self.name, shard, of_index=True)
        return np.array(self.lengths[shard], dtype=np.int64)

    def read_row(
        self, out: NDArray[np.unsignedinteger], pieces: Iterable[Sequence[int]], left_out: Collection[int] = ()
    ) -> Row:
        begins, masked, place = [], [], 0
        for shard, document, start, stop in pieces:
            begins.append(place)
            end = place + stop - start
            if shard in left_out:
                masked.append((place, end))
            else:
                out[place:end] = self._tokens(shard, document, start, stop)
            place = end
        return Row(begins, place, masked)

    def _tokens(self, shard: int, document: int, start: int, stop: int) -> NDArray[np.int64]:
        self.opened.add(shard)
        if shard in self.lost_content | self.lost_indexes:
            raise BadShardError(f"shard {shard} is lost", self.name, shard)
        assert stop <= self.lengths[shard][document]
        first = token(self.source, shard, document, start)
        return np.arange(first, first + stop - start)


def write_tars(folder: Path, source: int, shards: Lengths, max_seq_lens: tuple[int, ...]) -> Manifest:
    """Writes the shards of a source as tars with their indexes."""
    entries = []
    for number, shard in enumerate(shards):
        path = folder / f"source-{source}-{number}.tar"
        with webdataset.TarWriter(str(path), mtime=0) as writer:
            for document, length in enumerate(shard):
                first = token(source, number, document, 0)
                tokens = np.arange(first, first + length, dtype=np.uint16)
                writer.write({"__key__": f"{document}", "json": {"bytes": length}, "tokens.npy": tokens})
        index = index_shard(path)
        index.write(index_path(path))
        entries.append(
            ShardEntry(
                path=path.name,
                size=index.size,
                checksum=index.checksum,
                documents=len(shard),
                tokens=sum(shard),
                bytes=sum(shard),
                packed=packed_counts(shard, max_seq_lens),
            )
        )
    return manifest_of(tuple(entries), str(folder / "manifest.json"))
