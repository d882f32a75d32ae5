"""What a run keeps of its corpus: all that it needs, from whichever version of it."""

import json
from pathlib import Path

import pytest

from scaletrain.data.corpus_facts import CorpusFacts
from scaletrain.data.tokenizer import Borders, train_byte_level_bpe
from scaletrain.errors import DataError

SIZE = 259  # bytes, the end of a text, and two tokens more
FACTS = CorpusFacts("x", Borders(0, 3), SIZE, True, ("label",), ("a class", "\u00e9"), "{{ bos_token }}\n\u00e9")


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    train_byte_level_bpe(["ab ab"], SIZE).save(str(tmp_path / "tokenizer.json"))
    return tmp_path


@pytest.mark.parametrize("facts", [FACTS, CorpusFacts("x", Borders(0, None), SIZE)])
def test_what_is_kept_is_read_again(run_dir: Path, facts: CorpusFacts) -> None:
    FACTS.keep(run_dir)  # a start before: nothing of it must be left
    facts.keep(run_dir, fingerprint="f", sources={"corpus": "there"})
    read = CorpusFacts.read(run_dir)
    assert read == CorpusFacts(**{**vars(facts), "shown": str(run_dir / "corpus.json")})
    assert json.loads((run_dir / "corpus.json").read_text())["sources"] == {"corpus": "there"}


def test_a_start_that_knows_its_borders_alone_is_read(run_dir: Path) -> None:
    (run_dir / "corpus.json").write_text('{"eos_id": 1, "bos_id": null}')
    read = CorpusFacts.read(run_dir)
    assert (read.borders, read.vocab_size, read.classes, read.chat_template) == (Borders(1, None), SIZE, (), None)


@pytest.mark.parametrize("content", ["", "{}", '{"eos_id": 1, "bos_id": null, "classes": 3}'])
def test_what_is_damaged_is_told(run_dir: Path, content: str) -> None:
    (run_dir / "corpus.json").write_text(content)
    with pytest.raises(DataError, match="Start the run again, which writes it"):
        CorpusFacts.read(run_dir)
