"""How near a whole build of a corpus comes to the bare speed of its tokenizer on all cores.

The bare tokenizer is given all texts in one call, and in calls of 1 MiB; the faster of the two is what the others are
compared with. All variants take turns, in the opposite order in every second round. Prints the table of the page in
Markdown.

    python benchmarks/tokenizing.py --rounds 6
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fire
from conditions import print_conditions
from tokenizers import Tokenizer

from scaletrain.corpus.build import build_corpus, build_from_files
from scaletrain.corpus.documents import find_corpus
from scaletrain.corpus.options import BuildOptions
from scaletrain.corpus.report import read_report
from scaletrain.corpus.rules import load_rules
from scaletrain.data.tokenizer import load_tokenizer

ROOT = Path(__file__).parents[1]
CHUNK_CHARACTERS = 1 << 20
ONE_CALL, IN_CHUNKS = "encode_batch_fast, one call", "encode_batch_fast, calls of 1 MiB"
BARE = (ONE_CALL, IN_CHUNKS)
_FOREIGN = {"site-packages", "dist-packages", "test", "tests", "__pycache__"}
_COPIES = 2  # of the standard library, each with a line of its own, so that none is an exact copy


def make_texts(folder: Path) -> int:
    """Writes the texts, and returns their bytes."""
    library = Path(os.__file__).parent
    n_bytes = 0
    sources = [path for path in sorted(library.rglob("*.py")) if not _FOREIGN.intersection(path.parts)]
    for number, path in enumerate(sources):
        content = path.read_text(encoding="utf-8", errors="replace")
        for copy in range(_COPIES):
            text = f"# {copy}\n{content}"
            (folder / f"{copy}-{number:05d}.py").write_text(text, encoding="utf-8")
            n_bytes += len(text.encode())
    return n_bytes


def chunks(texts: list[str]) -> Iterator[list[str]]:
    """The texts in lists of about a MiB."""
    chunk: list[str] = []
    for text in texts:
        chunk.append(text)
        if sum(map(len, chunk)) >= CHUNK_CHARACTERS:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def encode(tokenizer: Tokenizer, batches: list[list[str]]) -> None:
    """Makes tokens and keeps none."""
    for batch in batches:
        tokenizer.encode_batch_fast(batch, add_special_tokens=False)


def make_variants(texts: Path, out: Path, path: Path, cores: int) -> dict[str, Callable[[], object]]:
    """What is measured, by name; all of it makes tokens of the same texts by the same tokenizer."""
    corpus = find_corpus(texts)
    tokenizer = load_tokenizer(path)
    contents = [document.text for document in corpus.documents()]
    in_chunks = list(chunks(contents))
    clean = load_rules(ROOT / "configs/corpus/clean.yaml")
    command = [sys.executable, str(ROOT / "tools" / "make_shards.py"), "build", "--input", str(texts), "--out"]
    command += [str(out), "--tokenizer", str(path), "--num_workers", str(cores)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return {
        ONE_CALL: lambda: encode(tokenizer, [contents]),
        IN_CHUNKS: lambda: encode(tokenizer, in_chunks),
        "build_from_files": lambda: build_from_files(corpus, out, BuildOptions(path, "texts", num_workers=cores)),
        "build_from_files, clean.yaml": lambda: build_from_files(
            corpus, out, BuildOptions(path, "texts", rules=clean, num_workers=cores)
        ),
        "make_shards.py build, the whole command": lambda: subprocess.run(
            command, check=True, capture_output=True, env=environment
        ),
    }


def measure(variants: dict[str, Callable[[], object]], out: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of each turn of each variant; the first round warms up and is left out."""
    found: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name in list(variants)[:: -1 if number % 2 else 1]:
            shutil.rmtree(out, ignore_errors=True)
            start_s = time.perf_counter()
            variants[name]()
            seconds = time.perf_counter() - start_s
            if number:
                found[name].append(seconds)
            if name.endswith("clean.yaml") and not number:
                print(f"- Left by clean.yaml: {read_report(out).kept['train']['bytes'] / 1e6:.0f} MB of text\n")
    return found


def print_table(seconds: dict[str, list[float]], n_bytes: int) -> None:
    """Shares are of the same round's seconds of the faster of the two bare variants."""
    baseline = min(BARE, key=lambda name: statistics.median(seconds[name]))
    print(f"| variant | s, median | smallest to largest | MB/s | speed of {baseline} |\n|---|---|---|---|---|")
    for name, turns in seconds.items():
        shares = [bare / turn for bare, turn in zip(seconds[baseline], turns, strict=True)]
        middle = statistics.median(turns)
        print(
            f"| `{name}` | {middle:.1f} | {min(turns):.1f} to {max(turns):.1f} | {n_bytes / middle / 1e6:.1f} | "
            f"{statistics.median(shares):.0%} ({min(shares):.0%} to {max(shares):.0%}) |"
        )


def main(*, rounds: str = "6") -> None:
    """Measures and prints a table.

    Args:
        rounds: Turns of each variant; one more, the first, is left out.
    """
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = folder / "texts"
        texts.mkdir()
        n_bytes = make_texts(texts)
        print_conditions("tokenizers")
        print(f"- {n_bytes / 1e6:.0f} MB of text, {rounds} rounds, {cores} worker processes", flush=True)
        build_corpus(find_corpus(texts).documents, folder / "first", 8192, "texts")
        out = folder / "out"
        variants = make_variants(texts, out, folder / "first" / "tokenizer.json", cores)
        print_table(measure(variants, out, int(rounds)), n_bytes)


if __name__ == "__main__":
    fire.Fire(main)
