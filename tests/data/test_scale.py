"""A corpus of 100,000 shards and 10^12 tokens: what is not asked for is not opened, not even looked at."""

import hashlib
import json
import statistics
import time
from pathlib import Path

import numpy as np
import pytest

from scaletrain.data.dataset import SequenceDataset
from scaletrain.data.manifest import Manifest
from scaletrain.data.order import DatasetOptions
from scaletrain.data.shard_index import ShardIndex
from scaletrain.data.shards import ShardReader
from scaletrain.errors import BadShardError

SHARDS, DOCUMENTS, MEAN_TOKENS, T = 100_000, 5000, 2000, 2048
TOKENIZER = b"{}"


def shard_tokens(shard: int) -> int:
    """Ten million, and a little more or less."""
    return DOCUMENTS * MEAN_TOKENS + shard * 7919 % 1000 - 500


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of shards in an object store, whose indexes would lie beside it: there are none."""
    folder = tmp_path_factory.mktemp("large")
    (folder / "tokenizer.json").write_bytes(TOKENIZER)
    shards = [
        {
            "path": f"s3://nowhere/{shard}.tar",
            "size": 2 * shard_tokens(shard),
            "checksum": f"{shard:032x}",
            "index": f"{shard}.index.npz",
            "documents": DOCUMENTS,
            "tokens": shard_tokens(shard),
            "bytes": 4 * shard_tokens(shard),
        }
        for shard in range(SHARDS)
    ]
    tokens = sum(map(shard_tokens, range(SHARDS)))
    manifest = {
        "version": 1,
        "source": "invented",
        "dtype": "uint16",
        "tokenizer": {
            "file": "tokenizer.json",
            "sha256": hashlib.sha256(TOKENIZER).hexdigest(),
            "vocab_size": 50_000,
            "eos_id": 0,
        },
        "splits": {"train": shards},
        "totals": {"train": {"documents": SHARDS * DOCUMENTS, "tokens": tokens, "bytes": 4 * tokens}},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert abs(tokens / 1e12 - 1) < 1e-3
    return folder


def write_index(folder: Path, shard: int) -> None:
    spread = np.random.default_rng(shard).integers(0, MEAN_TOKENS - 500, DOCUMENTS // 2)
    lengths = MEAN_TOKENS + np.concatenate([spread, -spread])
    lengths[-1] += shard_tokens(shard) - lengths.sum()
    sizes = 2 * lengths
    ShardIndex(
        offsets=np.cumsum(sizes) - sizes,
        sizes=sizes,
        n_tokens=lengths,
        n_bytes=4 * lengths,
        size=2 * shard_tokens(shard),
        checksum=f"{shard:032x}",
        edges="",
        dtype="uint16",
        keys=[str(document) for document in range(DOCUMENTS)],
    ).write(folder / f"{shard}.index.npz")


@pytest.mark.parametrize("num_lanes", [4, 64])
def test_an_order_of_1e12_tokens_opens_what_it_is_asked_for(folder: Path, num_lanes: int) -> None:
    start = time.process_time()
    options = DatasetOptions(T, num_lanes)
    order = SequenceDataset([ShardReader(Manifest.open(folder), "train")], options).order
    # About one second where nothing else runs; the figure is in benchmarks/data_loading_2026-11.md.
    assert time.process_time() - start < 5
    # Any sequence is found without its window; and there is no index that could have been opened.
    deep = order.locate(10**15 + 1)
    assert deep.lane == (10**15 + 1) % num_lanes and deep.epoch > 10**5
    with pytest.raises(BadShardError, match="No such file"):
        order.pieces(0)

    window = order.members(order.locate(0)).tolist()
    assert len(window) == options.window_shards
    for shard in window:
        write_index(folder, shard)
    order.pieces(0)
    for shard in window:
        (folder / f"{shard}.index.npz").unlink()
    # The others of the window need no file any more, wherever they stand, and cost what arithmetic costs.
    length = len(order.window(order.locate(0)))
    assert length == -(-(sum(map(shard_tokens, window)) - 1) // T)
    times_s = []
    for place in range(0, length, length // 500):
        start = time.perf_counter()
        pieces = order.pieces(place * num_lanes)
        times_s.append(time.perf_counter() - start)
        assert {piece.shard for piece in pieces} <= set(window)
        assert T <= sum(piece.stop - piece.start for piece in pieces) <= T + 1 or place == length - 1
    assert statistics.median(times_s) < 500e-6
    with pytest.raises(BadShardError, match="No such file"):
        order.pieces(length * num_lanes)
