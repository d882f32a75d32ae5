"""What is done to a corpus that is there: counting it for best-fit packing, and reading all of it to see it whole."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import xxhash

from scaletrain.data.layout import best_fit
from scaletrain.data.manifest import Manifest, ShardEntry
from scaletrain.data.shards import ShardReader
from scaletrain.errors import ConfigError, DataError
from scaletrain.storage.storage import Storage
from scaletrain.storage.urls import is_remote, printable

_THREADS = 8
_CHUNK_BYTES = 1 << 20


class Checked(NamedTuple):
    """A shard that was read whole; ``problem`` is empty for one that is as the manifest has it."""

    shard: str
    problem: str


def count_packed(location: Path, max_seq_lens: Sequence[int]) -> Manifest:
    """Counts the sequences that best-fit packing makes of each shard, and keeps the counts in the manifest.

    Args:
        location: A local manifest, or its folder.
        max_seq_lens: Lengths of sequences to count for.

    Returns:
        The manifest with the counts, as it was written.

    Raises:
        ConfigError: A length is below 1.
        DataError: The manifest or an index cannot be read.
    """
    if wrong := [length for length in max_seq_lens if length < 1]:
        raise ConfigError(f"--max_seq_len {wrong[0]} must be at least 1.")
    manifest = Manifest.open(location)
    splits = {}
    for split, shards in manifest.splits.items():
        if shards:
            reader = ShardReader(manifest, split)
            splits[split] = tuple(_counted(reader, number, max_seq_lens) for number in range(len(shards)))
    counted = manifest.model_copy(update={"splits": {**manifest.splits, **splits}})
    counted.write()
    return counted


def _counted(reader: ShardReader, number: int, max_seq_lens: Sequence[int]) -> ShardEntry:
    lengths = reader.token_counts(number)
    packed = {length: len(best_fit(lengths, length)) for length in max_seq_lens}
    entry = reader.shards[number]
    return entry.model_copy(update={"packed": {**entry.packed, **packed}})


def check_shards(manifest: Manifest, storage: Storage) -> Iterator[Checked]:
    """Reads every byte of every shard and compares its checksum with the manifest's.

    Args:
        manifest: The corpus.
        storage: Opens what is not a local file; what comes from elsewhere is checked as it arrives.

    Yields:
        Each shard, in the manifest's order.
    """
    readers = [ShardReader(manifest, split, storage) for split, shards in manifest.splits.items() if shards]
    jobs = [(reader, number) for reader in readers for number in range(len(reader.shards))]
    with ThreadPoolExecutor(_THREADS) as threads:
        yield from threads.map(lambda job: _check(manifest, storage, *job), jobs)


def _check(manifest: Manifest, storage: Storage, reader: ShardReader, number: int) -> Checked:
    entry = reader.shards[number]
    location = manifest.locate(entry.path)
    try:
        reader.token_counts(number)
        with storage.open(location, entry.size, entry.checksum) as stream:
            if is_remote(location):
                return Checked(printable(location), "")
            digest = xxhash.xxh3_128()
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
    except (DataError, OSError) as error:
        return Checked(printable(location), str(error))
    if digest.hexdigest() != entry.checksum:
        found = f"its checksum is {digest.hexdigest()}, the manifest says {entry.checksum}"
        return Checked(printable(location), f"{found}. Copy it again from where it came, or build the corpus again.")
    return Checked(printable(location), "")
