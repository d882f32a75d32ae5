"""What a lane will need is fetched before it is needed, indexes and all."""

import threading
from pathlib import Path

import fsspec
import xxhash

from scaletrain.data.dataset import SequenceDataset
from scaletrain.data.manifest import Manifest
from scaletrain.data.order import DatasetOptions
from scaletrain.data.shards import ShardReader
from scaletrain.storage.storage import Storage
from tests.data.readers import write_tars

LENGTHS = tuple((5 + shard, 9, 3) for shard in range(12))
T, LANES, WINDOW = 8, 2, 2


def publish(folder: Path) -> Manifest:
    """Writes shards, and puts them where a cache is needed to read them."""
    manifest = write_tars(folder, 0, LENGTHS, ())
    elsewhere = fsspec.filesystem("memory")
    elsewhere.put(str(folder), str(folder), recursive=True)
    shards = []
    for shard in manifest.split("train"):
        index = (folder / shard.path).with_suffix(".index.npz").read_bytes()
        facts = {"index_size": len(index), "index_checksum": xxhash.xxh3_128_hexdigest(index)}
        shards.append(shard.model_copy(update=facts))
    return manifest.model_copy(
        update={"location": f"memory://{folder}/manifest.json", "splits": {"train": tuple(shards)}}
    )


def wait_for_prefetching() -> None:
    for thread in threading.enumerate():
        if thread.name == "prefetch":
            thread.join(10.0)


def test_the_window_in_use_and_the_next_one_of_each_lane_are_here(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    manifest = publish(tmp_path / "shards")
    cache = tmp_path / "cache"
    dataset = SequenceDataset(
        [ShardReader(manifest, "train", Storage(cache_dir=cache, cache_bytes=2**20))],
        DatasetOptions(T, LANES, WINDOW),
    )
    shards, own = manifest.split("train"), dataset.order.sources[0]
    wanted: set[str] = set()
    seen = []
    for sequence in range(LANES * own.sequences_of_lane(0)):
        location = dataset.order.locate(sequence)
        dataset.micro_batch([sequence])
        wait_for_prefetching()
        following = sequence
        while dataset.order.locate(following).window == location.window:
            following += LANES
        for window in (location.window, dataset.order.locate(following).window):
            for shard in own.members(location.lane, window):
                wanted |= {shards[shard].checksum, str(shards[shard].index_checksum)}
        # Equally: nothing is fetched long before its time.
        assert {path.name.removesuffix(".shard") for path in cache.glob("*.shard*")} == wanted
        seen.append(len(wanted))
    assert len(set(seen)) > 3 and seen[-1] == 2 * len(LENGTHS)
