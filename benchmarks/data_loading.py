"""Tokens per second of the data pipeline in one process, beside webdataset, nanoGPT's reads and bare positioned reads.

Makes shards of its own, and lets all variants read them in turns from a warm page cache. Then takes the time to the
first batch, from zero and far into a run. Prints the tables of the page in Markdown.

    python benchmarks/data_loading.py --rounds 7
"""

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import fire
import numpy as np
import torch
import webdataset
from conditions import print_conditions
from numpy.typing import NDArray

from scaletrain.data.dataset import SequenceDataset
from scaletrain.data.layout import best_fit
from scaletrain.data.manifest import FILE_NAME, Manifest, ShardEntry, TokenizerEntry, totals_of
from scaletrain.data.order import DatasetOptions
from scaletrain.data.shard_index import index_path, index_shard
from scaletrain.data.shards import ShardReader
from scaletrain.data.source_order import Packing

SEQ_LEN, ROWS = 2048, 16
N_SHARDS, SHARD_TOKENS, N_SOURCES = 24, 1 << 22, 3
WEBDATASET_SHARDS = 3  # of those that webdataset reads in a turn, which takes long enough
NANOGPT_BATCHES = 1024
VOCAB_SIZE, EOS = 50_257, 50_256
MEAN_TOKENS = 500
CONSUMED_TOKENS = {"zero": 0, "10^9 tokens": 10**9, "10^12 tokens": 10**12}

Turn = Callable[[], int]
"""Reads for a while and returns the tokens read."""


@dataclass(frozen=True)
class Corpus:
    """Shards with documents of one kind.

    Attributes:
        folder: Where they lie.
        whole: Folder of the manifest of all shards.
        parts: Folders of the manifests of three sources that share them out.
    """

    folder: Path
    whole: Path
    parts: list[Path]

    @property
    def shards(self) -> list[Path]:
        return sorted(self.folder.glob("*.tar"))


def document_lengths(kind: str, shard: int) -> NDArray[np.int64]:
    """Tokens of the documents of a shard: all 4,096, or lognormal (sigma 1) around a mean like that of web text."""
    if kind == "4,096 tokens":
        return np.full(SHARD_TOKENS // 4096, 4096)
    drawn = np.random.default_rng(shard).lognormal(np.log(MEAN_TOKENS) - 0.5, 1.0, SHARD_TOKENS // MEAN_TOKENS)
    return np.maximum(2, drawn).astype(np.int64)


def make_corpus(folder: Path, kind: str) -> Corpus:
    """Writes shards of random tokens with webdataset's own writer, their indexes and the manifests."""
    folder.mkdir()
    entries = []
    for number in range(N_SHARDS):
        path = folder / f"train-{number:06d}.tar"
        lengths = document_lengths(kind, number)
        stream = np.random.default_rng(number).integers(0, EOS, int(lengths.sum()), dtype=np.uint16)
        stream[np.cumsum(lengths) - 1] = EOS
        with webdataset.TarWriter(str(path), mtime=0) as writer:
            for document, tokens in enumerate(np.split(stream, np.cumsum(lengths)[:-1])):
                facts = {"source": f"{number}/{document}", "bytes": 4 * len(tokens)}
                writer.write({"__key__": f"{document:010d}", "json": facts, "tokens.npy": tokens})
        index = index_shard(path)
        index.write(index_path(path))
        entries.append(
            ShardEntry(
                path=str(path),
                size=index.size,
                checksum=index.checksum,
                index=f"{path.stem}.index.npz",
                documents=len(lengths),
                tokens=int(lengths.sum()),
                bytes=int(index.n_bytes.sum()),
                packed={SEQ_LEN: len(best_fit(lengths, SEQ_LEN))},
            )
        )
    parts = [tuple(entries[first::N_SOURCES]) for first in range(N_SOURCES)]
    return Corpus(
        folder,
        write_manifest(folder, "whole", tuple(entries)),
        [write_manifest(folder, f"part{number}", part) for number, part in enumerate(parts)],
    )


def write_manifest(corpus: Path, name: str, entries: tuple[ShardEntry, ...]) -> Path:
    """A manifest in a folder of its own, with links to the indexes."""
    folder = corpus / name
    folder.mkdir()
    for entry in entries:
        (folder / str(entry.index)).symlink_to(corpus / str(entry.index))
    (folder / "tokenizer.json").write_bytes(b"{}")
    sha256 = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    Manifest(
        location=str(folder / FILE_NAME),
        source="random tokens",
        dtype="uint16",
        tokenizer=TokenizerEntry(file="tokenizer.json", sha256=sha256, vocab_size=VOCAB_SIZE, eos_id=EOS),
        splits={"train": entries},
        totals={"train": totals_of(entries)},
    ).write()
    return folder


def open_dataset(manifests: list[Path], packing: Packing, num_lanes: int) -> SequenceDataset:
    """Everything from the manifests' files on."""
    readers = [ShardReader(Manifest.open(path), "train", name=path.name) for path in manifests]
    return SequenceDataset(readers, DatasetOptions(SEQ_LEN, num_lanes, packing=packing))


def scaletrain_turn(manifests: list[Path], packing: Packing, num_lanes: int) -> Turn:
    """One epoch with a new dataset: order, packing, borders, targets and checksums; all that a step gets."""

    def turn() -> int:
        dataset = open_dataset(manifests, packing, num_lanes)
        sequences = sum(own.sequences_per_epoch for own in dataset.order.sources)
        tokens = sum(reader.manifest.totals["train"].tokens for reader in dataset.readers)
        last = sequences // ROWS * ROWS
        for start in range(0, last, ROWS):
            dataset.micro_batch(range(start, start + ROWS))
        return tokens * last // sequences

    return turn


def webdataset_turn(shards: list[Path], only_tokens: bool = False, cut: bool = False) -> Turn:
    """The documents in the order in which they lie there; cut into sequences: without order, borders or checksums."""

    def documents() -> Iterator[NDArray[np.uint16]]:
        select = (lambda name: name.endswith(".tokens.npy")) if only_tokens else None
        pipeline = webdataset.WebDataset([str(shard) for shard in shards], shardshuffle=False, select_files=select)
        for sample in pipeline.decode():
            yield sample["tokens.npy"]

    def turn() -> int:
        if not cut:
            return sum(map(len, documents()))
        return sum(ROWS * SEQ_LEN for _ in batches(documents()))

    return turn


def batches(documents: Iterator[NDArray[np.uint16]]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Joins documents and cuts them into inputs and targets (ROWS, SEQ_LEN), int64."""
    held: list[NDArray[np.uint16]] = []
    count, need = 0, ROWS * SEQ_LEN + 1
    for tokens in documents:
        held.append(tokens)
        count += len(tokens)
        while count >= need:
            joined = np.concatenate(held)
            stream = torch.from_numpy(joined[:need].astype(np.int64))
            yield stream[:-1].view(ROWS, SEQ_LEN), stream[1:].view(ROWS, SEQ_LEN)
            held = [joined[need - 1 :]]
            count = len(held[0])


def nanogpt_turn(path: Path, keep_map: bool) -> Turn:
    """Random rows of a flat file, as get_batch reads them, which maps the file anew for each batch.

    Source: https://github.com/karpathy/nanoGPT, train.py, get_batch.
    """

    def turn() -> int:
        data = np.memmap(path, dtype=np.uint16, mode="r")
        for _ in range(NANOGPT_BATCHES):
            if not keep_map:
                data = np.memmap(path, dtype=np.uint16, mode="r")
            places = torch.randint(len(data) - SEQ_LEN, (ROWS,))
            torch.stack([torch.from_numpy(data[i : i + SEQ_LEN].astype(np.int64)) for i in places])
            torch.stack([torch.from_numpy(data[i + 1 : i + 1 + SEQ_LEN].astype(np.int64)) for i in places])
        return NANOGPT_BATCHES * ROWS * SEQ_LEN

    return turn


def pread_turn(shards: list[Path]) -> Turn:
    """The bytes of each document by the index, and nothing else: the limit."""
    indexes = [index_shard(shard) for shard in shards]
    places = [list(zip(index.offsets.tolist(), index.sizes.tolist(), strict=True)) for index in indexes]

    def turn() -> int:
        total = 0
        for shard, documents in zip(shards, places, strict=True):
            descriptor = os.open(shard, os.O_RDONLY)
            for offset, size in documents:
                total += len(os.pread(descriptor, size, offset)) // 2
            os.close(descriptor)
        return total

    return turn


def make_turns(folder: Path, kinds: list[str]) -> dict[tuple[str, str], Turn]:
    """All variants, by the kind of documents and what they do."""
    turns: dict[tuple[str, str], Turn] = {}
    for kind in kinds:
        corpus = make_corpus(folder / kind.split()[0], kind)
        print(f"made: documents of {kind}", file=sys.stderr, flush=True)
        sources = {"1 source": [corpus.whole], "3 sources": corpus.parts}
        packings: tuple[Packing, ...] = ("concat", "best_fit")
        for packing in packings:
            for name, manifests in sources.items():
                for num_lanes in (1, 8):
                    label = f"scaletrain, {packing}, {name}, {num_lanes} lane{'s' * (num_lanes > 1)}"
                    turns[kind, label] = scaletrain_turn(manifests, packing, num_lanes)
        few = corpus.shards[:WEBDATASET_SHARDS]
        turns[kind, "webdataset, decode"] = webdataset_turn(few)
        turns[kind, "webdataset, decode, tokens only"] = webdataset_turn(few, only_tokens=True)
        turns[kind, "webdataset, decode, cut into batches"] = webdataset_turn(few, cut=True)
        turns[kind, "`os.pread` of indexed documents"] = pread_turn(corpus.shards)
    flat = folder / "train.bin"
    with flat.open("wb") as stream:
        for number in range(N_SHARDS):
            np.random.default_rng(number).integers(0, EOS, SHARD_TOKENS, dtype=np.uint16).tofile(stream)
    turns["flat file", "nanoGPT, `get_batch`"] = nanogpt_turn(flat, keep_map=False)
    turns["flat file", "nanoGPT, `get_batch`, file mapped once"] = nanogpt_turn(flat, keep_map=True)
    return turns


def measure(turns: dict[tuple[str, str], Turn], rounds: int) -> dict[tuple[str, str], list[float]]:
    """Tokens per second in each round; the first round warms up and is left out."""
    rates: dict[tuple[str, str], list[float]] = {name: [] for name in turns}
    for number in range(rounds + 1):
        for name, turn in turns.items():
            start = time.perf_counter()
            tokens = turn()
            if number:
                rates[name].append(tokens / (time.perf_counter() - start))
        print(f"round {number} of {rounds}", file=sys.stderr, flush=True)
    return rates


def print_rates(rates: dict[tuple[str, str], list[float]]) -> None:
    """Median, spread, and the medians of the ratios to the peers' faster variants of the same round."""
    print("\n| documents | variant | million tokens/s, median | smallest to largest | webdataset | nanoGPT |")
    print("|---|---|---|---|---|---|")
    for (kind, variant), found in rates.items():
        millions = sorted(rate / 1e6 for rate in found)
        ratios = []
        for peer, where in (("webdataset", kind), ("nanoGPT", "flat file")):
            best = fastest(rates, where, peer)
            compared = best and not variant.startswith(("webdataset", "nanoGPT"))
            ratios.append(f"{statistics.median(map(np.divide, found, best)):.1f}" if compared else "")
        spread = f"{millions[0]:.1f} to {millions[-1]:.1f}"
        print(f"| {kind} | {variant} | {statistics.median(millions):.1f} | {spread} | {' | '.join(ratios)} |")


def fastest(rates: dict[tuple[str, str], list[float]], kind: str, peer: str) -> list[float]:
    """The rates of that variant of a peer which has the highest median."""
    found = [rate for (where, variant), rate in rates.items() if where == kind and variant.startswith(peer)]
    return max(found, key=statistics.median, default=[])


def print_first_batches(folder: Path, kind: str, repeats: int) -> None:
    """Milliseconds from the manifest's file to the first micro batch, in turns."""
    corpus = folder / kind.split()[0]
    whole, parts = [corpus / "whole"], [corpus / f"part{number}" for number in range(N_SOURCES)]
    print(f"\n| documents of {kind} | " + " | ".join(CONSUMED_TOKENS) + " |")
    print("|---|" + "---|" * len(CONSUMED_TOKENS))
    cases: list[tuple[str, list[Path], Packing, int]] = [
        ("concat, 1 source, 1 lane", whole, "concat", 1),
        ("concat, 1 source, 8 lanes", whole, "concat", 8),
        ("best_fit, 1 source, 1 lane", whole, "best_fit", 1),
        ("best_fit, 3 sources, 8 lanes", parts, "best_fit", 8),
    ]
    for label, manifests, packing, num_lanes in cases:
        times: dict[str, list[float]] = {name: [] for name in CONSUMED_TOKENS}
        for _ in range(repeats):
            for name, tokens in CONSUMED_TOKENS.items():
                start = time.perf_counter()
                dataset = open_dataset(manifests, packing, num_lanes)
                first = tokens // SEQ_LEN
                dataset.micro_batch(range(first, first + ROWS))
                times[name].append(1000 * (time.perf_counter() - start))
        shown = (f"{statistics.median(t):.0f} ({min(t):.0f} to {max(t):.0f})" for t in times.values())
        print(f"| {label} | {' | '.join(shown)} |", flush=True)


def main(*, rounds: str = "7", repeats: str = "9", out: str = "") -> None:
    """Measures and prints the tables.

    Args:
        rounds: Turns of each variant.
        repeats: First batches of each kind.
        out: JSON file to write.
    """
    torch.set_num_threads(1)  # as in a worker of torch's DataLoader
    print_conditions("torch", "numpy", "webdataset")
    kinds = ["4,096 tokens", f"lognormal, {MEAN_TOKENS} on average"]
    with tempfile.TemporaryDirectory() as folder:
        rates = measure(make_turns(Path(folder), kinds), int(rounds))
        print_rates(rates)
        for kind in kinds:
            print_first_batches(Path(folder), kind, int(repeats))
    if out:
        rows = [{"documents": kind, "variant": variant, "rates": found} for (kind, variant), found in rates.items()]
        Path(out).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    fire.Fire(main)
