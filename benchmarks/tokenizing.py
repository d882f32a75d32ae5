"""How near a whole build of a corpus comes to the bare speed of its tokenizer on all cores.

python benchmarks/tokenizing.py --rounds 5
"""

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import fire

from scaletrain.corpus.build import BuildOptions, build_corpus, build_from_files
from scaletrain.corpus.documents import find_corpus
from scaletrain.data.tokenizer import load_tokenizer

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


def timed(work: Callable[[], object]) -> float:
    """Seconds that something takes."""
    start_s = time.perf_counter()
    work()
    return time.perf_counter() - start_s


def main(*, rounds: str = "5") -> None:
    """Measures and prints a table.

    Args:
        rounds: Turns of each variant; one more, the first, is left out.
    """
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts, out = folder / "texts", folder / "out"
        texts.mkdir()
        n_bytes = make_texts(texts)
        corpus = find_corpus(texts)
        build_corpus(corpus.documents, folder / "first", 8192, "texts")
        path = folder / "first" / "tokenizer.json"
        tokenizer = load_tokenizer(path)
        contents = [document.text for document in corpus.documents()]

        def whole_build() -> None:
            shutil.rmtree(out, ignore_errors=True)
            build_from_files(corpus, out, BuildOptions(path, source="texts", num_workers=cores))

        variants: dict[str, Callable[[], object]] = {
            "encode_batch_fast": lambda: tokenizer.encode_batch_fast(contents, add_special_tokens=False),
            "make_shards build": whole_build,
        }
        found = [{name: timed(work) for name, work in variants.items()} for _ in range(int(rounds) + 1)][1:]
    print(f"{n_bytes / 1e6:.0f} MB of text, {cores} cores, {rounds} rounds\n")
    print("| variant | s, median | smallest to largest | MB/s | speed of encode_batch_fast |\n|---|---|---|---|---|")
    for name in variants:
        seconds = [turn[name] for turn in found]
        shares = [turn["encode_batch_fast"] / turn[name] for turn in found]
        middle = statistics.median(seconds)
        print(
            f"| `{name}` | {middle:.1f} | {min(seconds):.1f} to {max(seconds):.1f} | {n_bytes / middle / 1e6:.1f} | "
            f"{statistics.median(shares):.0%} ({min(shares):.0%} to {max(shares):.0%}) |"
        )


if __name__ == "__main__":
    fire.Fire(main)
