"""Tiny corpora of one tokenizer, and runs over them that nothing cut; no test changes them."""

import random
from pathlib import Path

import pytest

from scaletrain.corpus.build import build_corpus
from scaletrain.corpus.documents import Document
from scaletrain.corpus.upkeep import count_packed
from tests.training.data_runs import SOURCES, DataRun, T


def invented_texts() -> dict[str, list[str]]:
    """For each source the texts of its documents, which are called by their numbers."""
    draw = random.Random(3)
    words = ["alpha", "beta", "gamma", "delta", "\n", "été", "1234", "def f(x):"]
    return {
        source: [f"{source} {number} {' '.join(draw.choices(words, k=draw.randint(1, 14)))}" for number in range(count)]
        for source, count in zip(SOURCES, (70, 45), strict=True)
    }


def build_corpora(folder: Path) -> Path:
    """Builds a corpus of several shards for each source, counted for best-fit packing."""
    tokenizer: Path | int = 300
    for source, texts in invented_texts().items():
        documents = [Document(f"{number}", text) for number, text in enumerate(texts)]
        build_corpus(lambda d=documents: d, folder / source, tokenizer, source, None, 0.2, 150)  # type: ignore[misc]
        tokenizer = folder / SOURCES[0] / "tokenizer.json"
        count_packed(folder / source, [T])
    return folder


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the corpora ``web`` and ``books``."""
    return build_corpora(tmp_path_factory.mktemp("corpora"))


@pytest.fixture(scope="session")
def uncut(corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> DataRun:
    """A run of two ranks without a cut."""
    run = DataRun(tmp_path_factory.mktemp("uncut"), corpora)
    run.complete(2)
    return run
