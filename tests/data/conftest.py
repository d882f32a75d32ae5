import random
from collections.abc import Callable
from pathlib import Path

import pytest

from scaletrain.corpus.build import build_corpus
from scaletrain.corpus.documents import find_corpus
from scaletrain.data.manifest import Manifest

BuildSmall = Callable[[Path], Manifest]


def write_texts(folder: Path, count: int) -> None:
    """Texts of 1 to 60 invented words each, some not in English."""
    source = random.Random(7)
    words = ["alpha", "beta", " gamma", "été", "\n", "λ", "token", "  def f(x):\n", "🙂", "1234"]
    for number in range(count):
        path = folder / f"part{number % 3}" / f"text{number:03d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{number} " + " ".join(source.choices(words, k=source.randint(1, 60))), encoding="utf-8")


@pytest.fixture(scope="session")
def build_small(tmp_path_factory: pytest.TempPathFactory) -> BuildSmall:
    """Builds the same small corpus, of several shards, in the folder given."""
    texts = tmp_path_factory.mktemp("texts")
    write_texts(texts, 120)

    def build(out: Path) -> Manifest:
        documents = find_corpus(texts).documents
        path = build_corpus(documents, out, 300, "invented", validation_share=0.2, shard_tokens=700)
        return Manifest.open(path)

    return build


@pytest.fixture(scope="session")
def corpus(build_small: BuildSmall, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """A small corpus to read, not to change."""
    return build_small(tmp_path_factory.mktemp("corpus"))
