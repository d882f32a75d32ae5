"""Whole builds: the same bytes whatever the processes, and what rules remove is told."""

import gzip
import io
import json
import os
import tarfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from scaletrain.corpus.build import build_from_files
from scaletrain.corpus.documents import find_corpus
from scaletrain.corpus.options import BuildOptions
from scaletrain.corpus.rules import load_rules
from scaletrain.data.manifest import Manifest
from scaletrain.data.shards import ShardReader
from scaletrain.data.tokenizer import parse_tokenizer

ROOT = Path(__file__).parents[2]
SENTENCE = "the quick brown fox number {} jumps over the lazy dog and runs through the wide green field of {} "


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files of all kinds, 400 documents in all, two of them the same."""
    folder = tmp_path_factory.mktemp("texts")
    made = [SENTENCE.format(number, number * 7) * (1 + number % 5) for number in range(399)]
    for number, text in enumerate(made[:100]):
        (folder / f"{number:03d}.txt").write_text(text)
    (folder / "copy.txt").write_text(made[0])
    lines = [json.dumps({"text": text}) + "\n" for text in made[100:200]]
    (folder / "a.jsonl").write_text("".join(lines[:30]))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress("".join(lines[30:60]).encode()))
    (folder / "c.jsonl.zst").write_bytes(zstandard.compress("".join(lines[60:]).encode()))
    pyarrow.parquet.write_table(pyarrow.table({"text": made[200:300]}), folder / "d.parquet")
    with tarfile.open(folder / "e.tar", "w") as tar:
        for number, text in enumerate(made[300:]):
            info = tarfile.TarInfo(f"{number}.txt")
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != ".lock"}


def build(texts: Path, out: Path, **options: object) -> Manifest:
    given = BuildOptions(**{"tokenizer": 300, "source": "invented", "shard_tokens": 3000, **options})  # type: ignore[arg-type]
    return Manifest.open(build_from_files(find_corpus(texts), out, given))


@pytest.fixture(scope="module")
def alone(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of them."""
    out = tmp_path_factory.mktemp("alone") / "out"
    build(texts, out, num_workers=0)
    return out


def test_the_number_of_processes_changes_no_byte(texts: Path, alone: Path, tmp_path: Path) -> None:
    build(texts, tmp_path / "out", num_workers=3)
    assert files_of(tmp_path / "out") == files_of(alone)
    manifest = Manifest.open(alone)
    assert sum(totals.documents for totals in manifest.totals.values()) == 399
    report = json.loads((alone / "report.json").read_text())
    assert report["read"]["documents"] == 400 and report["removed"] == {
        "duplicates.exact": {"documents": 1, "bytes": len(SENTENCE.format(0, 0))}
    }


def test_a_name_that_is_not_utf8_is_written_down(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / os.fsdecode(b"\xe9t.txt")).write_text("a text")
    build(folder, tmp_path / "out", validation_share=0.0)
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as tar:
        facts = tar.extractfile(tar.next() or "")
        assert facts is not None and json.loads(facts.read())["source"] == "\\udce9t.txt"


def test_rules_remove_and_replace_and_it_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    good = " ".join(SENTENCE.format(number, number) for number in range(20))
    nearly = good.replace("number 3 ", "number three ")
    private = (
        good.replace("fox", "cat").replace("lazy", "sleepy") + " write to jane.doe@mail.example.com or 93.184.216.34"
    )
    contents = {"a": good, "b": good, "c": nearly, "d": "too short", "e": "#### ... " * 200, "f": private}
    contents["g"] = private.replace("jane", "john")  # the same once both are replaced
    for name, text in contents.items():
        (folder / f"{name}.txt").write_text(text)
    rules = load_rules(ROOT / "configs/corpus/clean.yaml")
    manifest = build(folder, tmp_path / "out", rules=rules, validation_share=0.0, num_workers=0)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    removed = {rule: counts["documents"] for rule, counts in report["removed"].items()}
    assert removed.pop("duplicates.exact") == 2 and removed.pop("duplicates.near") == 1
    assert removed.pop("length.min_words") == 1 and sum(removed.values()) == 1
    assert report["replaced"] == {"<EMAIL>": 1, "<IP_ADDRESS>": 1}
    reader = ShardReader(manifest, "train")
    tokenizer = parse_tokenizer(manifest.read_tokenizer(), "")
    texts = [
        tokenizer.decode(reader.tokens(0, document, 0, int(count)).tolist())
        for document, count in enumerate(reader.token_counts(0))
    ]
    assert len(texts) == 2 and "write to <EMAIL> or <IP_ADDRESS>" in texts[1]
