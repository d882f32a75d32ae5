import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from examples.splits import read_records
from tests.examples.invented_lists import invented, write_lists


def prepare(example: str, *arguments: str | Path, hash_seed: str = "0") -> subprocess.CompletedProcess[str]:
    """Runs a program as a user does."""
    command = [sys.executable, "-m", f"examples.{example}", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHONHASHSEED": hash_seed}, timeout=120
    )


def checksums(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.jsonl"))}


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lists(tmp_path_factory.mktemp("lists"), [invented(number) for number in range(1000)])


def test_the_files_of_two_runs_are_the_same_bytes(tmp_path: Path, lists: Path) -> None:
    done = [
        prepare("debian.prepare", "--out", tmp_path / seed, "--lists", lists, hash_seed=seed) for seed in ("1", "2")
    ]
    assert [one.returncode for one in done] == [0, 0], done[0].stderr
    assert done[0].stdout == done[1].stdout
    first = checksums(tmp_path / "1")
    assert first == checksums(tmp_path / "2")
    assert len(first) == 15
    # The table says what is in the files.
    for name in first:
        records = read_records(tmp_path / "1" / name)
        counts = [sum(record["split"] == split for record in records) for split in ("train", "validation", "test")]
        row = f"| {name.removesuffix('.jsonl')} | " + " | ".join(f"{count:,}" for count in counts) + " |"
        assert row in done[0].stdout


def test_budgets_are_nested_and_share_what_is_held_out(tmp_path: Path, lists: Path) -> None:
    assert prepare("debian.prepare", "--out", tmp_path, "--lists", lists).returncode == 0
    for name in ("classification", "topics", "regression"):
        files = [read_records(tmp_path / f"{name}{part}.jsonl") for part in ("_1", "_10", "")]
        training = [[record for record in records if record["split"] == "train"] for records in files]
        held_out = [[record for record in records if record["split"] != "train"] for records in files]
        assert held_out[0] == held_out[1] == held_out[2]
        assert training[2][: len(training[1])] == training[1]
        assert training[1][: len(training[0])] == training[0]
        assert [len(records) for records in training[:2]] == [round(len(training[2]) / n) for n in (100, 10)]


def test_texts_to_pretrain_on_are_apart_from_what_is_held_out(tmp_path: Path, lists: Path) -> None:
    assert prepare("debian.prepare", "--out", tmp_path, "--lists", lists).returncode == 0
    read = {record["text"] for record in read_records(tmp_path / "language_model.jsonl")}
    held_out = {record["text"] for record in read_records(tmp_path / "language_model_held_out.jsonl")}
    assert len(read) > 500
    for name in ("classification", "topics", "regression"):
        asked = {record["text"] for record in read_records(tmp_path / f"{name}.jsonl") if record["split"] != "train"}
        assert asked <= held_out
        assert not asked & read


def test_a_trial_takes_the_first_records(tmp_path: Path, lists: Path) -> None:
    prepare("debian.prepare", "--out", tmp_path / "all", "--lists", lists)
    prepare("debian.prepare", "--out", tmp_path / "few", "--lists", lists, "--max_records", "50")
    for name in ("topics", "translation_it"):
        few = read_records(tmp_path / f"few/{name}.jsonl")
        assert len(few) == 50
        assert few == read_records(tmp_path / f"all/{name}.jsonl")[:50]


def test_paragraphs_to_translate_may_be_short(tmp_path: Path, lists: Path) -> None:
    for words in ("80", "9"):
        prepare("debian.prepare", "--out", tmp_path / words, "--lists", lists, "--max_paragraph_words", words)
    long, short = (read_records(tmp_path / f"{words}/translation_it.jsonl") for words in ("80", "9"))
    assert 0 < len(short) < len(long)
    assert short == [pair for pair in long if max(len(pair[side].split()) for side in ("source", "target")) <= 9]
    names = ("topics", "summarisation")
    assert all(
        read_records(tmp_path / f"80/{name}.jsonl") == read_records(tmp_path / f"9/{name}.jsonl") for name in names
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--lists", "nowhere"), "nowhere holds no file"),
        (("--max_records", "none"), "--max_records is 'none'"),
        (("--max_paragraph_words", "81"), "--max_paragraph_words is 81; give at most 80"),
        (("--lists",), "--lists needs a value"),
    ],
)
def test_a_mistake_is_told_in_a_line(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    done = prepare("debian.prepare", "--out", tmp_path, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr


@pytest.mark.thorough
def test_conversations_of_this_pythons_own_library(tmp_path: Path) -> None:
    done = prepare("stdlib.prepare", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    chat, code, held_out = (read_records(tmp_path / f"{name}.jsonl") for name in ("chat", "code", "code_held_out"))
    assert {record["split"] for record in code} == {"train"}
    assert {record["split"] for record in held_out} == {"validation", "test"}
    for records in (chat, code + held_out):
        shares = {split: sum(record["split"] == split for record in records) for split in ("train", "test")}
        assert shares["train"] > 0.7 * len(records)
        assert 0.05 * len(records) < shares["test"] < 0.2 * len(records)
    # What is asked for in a held-out conversation stands in no text to pretrain on.
    pretraining = "\n".join(record["text"] for record in code)
    answers = [record["messages"][1]["content"] for record in chat if record["split"] != "train"]
    bodies = [answer.split("\n", 2)[2].rpartition("\n")[0] for answer in answers if answer.startswith("```python\n")]
    long = [body for body in bodies if len(body) > 300]
    assert len(long) > 50
    assert sum(body in pretraining for body in long) < 0.02 * len(long)
    assert json.dumps(chat[0]).startswith('{"messages": [{"role": "user", "content": ')
