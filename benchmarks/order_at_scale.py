"""What the order of 10^12 tokens costs: an invented manifest of 100,000 remote shards, opened, dealt and asked.

Each measurement has a process of its own, so that its memory is its own. Prints the table of the page in Markdown.

    python benchmarks/order_at_scale.py --rounds 5
"""

import hashlib
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path

import fire
import numpy as np
import psutil
from conditions import print_conditions
from data_loading import EOS, MEAN_TOKENS, SEQ_LEN, VOCAB_SIZE
from numpy.typing import NDArray

from scaletrain.data.manifest import FILE_NAME, Manifest, ShardEntry, TokenizerEntry, totals_of
from scaletrain.data.order import DatasetOptions, order_of
from scaletrain.data.shards import ShardReader

TOTAL_TOKENS = 10**12
MIB = 2**20
ASKED = 2000  # sequences


class InventedReader(ShardReader):
    """Shards that exist only in the manifest; the lengths of their documents are drawn when they are asked for."""

    def token_counts(self, shard: int) -> NDArray[np.int64]:
        entry = self.shards[shard]
        drawn = np.random.default_rng(shard).lognormal(0.0, 1.0, entry.documents)
        counts = np.maximum(1, drawn / drawn.sum() * entry.tokens).astype(np.int64)
        counts[int(counts.argmax())] += entry.tokens - int(counts.sum())
        return counts


def write_manifest(folder: Path, n_shards: int) -> None:
    """Shards of about 10^7 tokens with all that an index in another place needs."""
    tokenizer = b"{}"
    (folder / "tokenizer.json").write_bytes(tokenizer)
    tokens = np.random.default_rng(0).integers(-1000, 1000, n_shards) + TOTAL_TOKENS // n_shards
    entries = tuple(
        ShardEntry(
            path=f"s3://corpus/part-{number:06d}.tar",
            size=2 * count,
            checksum=hashlib.md5(b"%d" % number).hexdigest(),
            index=f"index/part-{number:06d}.index.npz",
            index_size=count // 20,
            index_checksum=hashlib.md5(b"index %d" % number).hexdigest(),
            documents=count // MEAN_TOKENS,
            tokens=count,
            bytes=4 * count,
        )
        for number, count in enumerate(tokens.tolist())
    )
    Manifest(
        location=str(folder / FILE_NAME),
        source="invented",
        dtype="uint16",
        tokenizer=TokenizerEntry(
            file="tokenizer.json", sha256=hashlib.sha256(tokenizer).hexdigest(), vocab_size=VOCAB_SIZE, eos_id=EOS
        ),
        splits={"train": entries},
        totals={"train": totals_of(entries)},
    ).write()


def measure(folder: Path, num_lanes: int) -> dict[str, float]:
    """Opens, deals, and asks for sequences at the end of the first epoch, in a process that has done nothing else."""
    process = psutil.Process()
    before = process.memory_info().rss
    start = time.perf_counter()
    manifest = Manifest.open(folder)
    opened = time.perf_counter()
    with_manifest = process.memory_info().rss
    order = order_of([InventedReader(manifest, "train")], DatasetOptions(SEQ_LEN, num_lanes))
    dealt = time.perf_counter()
    with_order = process.memory_info().rss
    # The last window of a lane's epoch, from its first sequence on.
    last = order.locate(order.sources[0].sequences_of_lane(0) * num_lanes - num_lanes)
    first = (order.sources[0].sequences_of_lane(0) - 1 - last.position) * num_lanes
    began = time.perf_counter()
    order.pieces(first)
    made = time.perf_counter()
    with_window = process.memory_info().rss
    indices = range(first, first + ASKED * num_lanes, num_lanes)
    asking = time.perf_counter()
    for index in indices:
        order.pieces(index)
    asked = time.perf_counter()
    window = order.window(order.locate(first))
    return {
        "open, s": opened - start,
        "order, s": dealt - opened,
        "both, s": dealt - start,
        "window, s": made - began,
        "`pieces(i)`, µs": (asked - asking) / ASKED * 1e6,
        "manifest, MiB": (with_manifest - before) / MIB,
        "order, MiB": (with_order - with_manifest) / MIB,
        "window, MiB": (window.pieces.nbytes + window.first_piece.nbytes) / MIB,
        "first window, MiB": (with_window - with_order) / MIB,
        "memory of a shard, bytes": (with_order - before) / len(manifest.splits["train"]),
    }


def main(*, rounds: str = "5", n_shards: str = "100000", lanes: str = "1,64,512") -> None:
    """Measures and prints the table.

    Args:
        rounds: Processes for each number of lanes, in turns.
        n_shards: Shards of the manifest.
        lanes: Numbers of lanes.
    """
    print_conditions("numpy")
    lane_numbers = [int(item) for item in str(lanes).strip("()").split(",") if item.strip()]
    found: dict[int, list[dict[str, float]]] = {num_lanes: [] for num_lanes in lane_numbers}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_manifest(folder, int(n_shards))
        size = (folder / FILE_NAME).stat().st_size
        fresh = multiprocessing.get_context("spawn")
        for _ in range(int(rounds)):
            for num_lanes, results in found.items():
                with fresh.Pool(1) as pool:
                    results.append(pool.apply(measure, (folder, num_lanes)))
    print(f"\nManifest: {int(n_shards):,} shards, {size / int(n_shards):.0f} bytes of JSON for each.\n")
    print("| | " + " | ".join(f"{num_lanes} lane{'s' * (num_lanes > 1)}" for num_lanes in found) + " |")
    print("|---|" + "---|" * len(found))
    for quantity in found[lane_numbers[0]][0]:
        cells = (describe([result[quantity] for result in results]) for results in found.values())
        print(f"| {quantity} | {' | '.join(cells)} |")


def describe(values: list[float]) -> str:
    """Median and spread."""
    digits = 2 if statistics.median(values) < 10 else 0
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


if __name__ == "__main__":
    fire.Fire(main)
