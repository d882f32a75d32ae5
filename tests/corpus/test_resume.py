"""Builds that are cut: killed, interrupted, or left by a worker; they go on to the same bytes."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import psutil
import pytest

from scaletrain.corpus import options as options_module
from scaletrain.corpus.build import build_from_files
from scaletrain.corpus.documents import Corpus, Document, find_corpus
from scaletrain.corpus.options import BuildOptions
from scaletrain.corpus.processes import call_with_stream
from scaletrain.corpus.rules import CleaningRules, load_rules
from scaletrain.data.tokenizer import train_byte_level_bpe
from scaletrain.errors import ConfigError, DataError
from tests.processes import eventually, living

TOOL = Path(__file__).parents[2] / "tools" / "make_shards.py"
RULES = """
length: {min_words: 3}
replace: {emails: true}
"""
SHARD_TOKENS = 10_000


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A megabyte of invented text in 440 documents, with copies and e-mail addresses among them."""
    folder = tmp_path_factory.mktemp("texts")
    source = random.Random(3)
    words = ["".join(source.choices("abcdefghij", k=source.randint(2, 9))) for _ in range(3000)]
    lines = [json.dumps({"text": " ".join(source.choices(words, k=350))}) for _ in range(400)]
    lines += lines[:20] + [line.replace(words[0], "changed") for line in lines[20:40]]
    (folder / "a.jsonl").write_text("\n".join(lines))
    (folder / "b.txt").write_text("write to somebody@example.org at once")
    (folder / "c.txt").write_text("short")
    (folder / "rules.yaml").write_text(RULES)
    return folder


def options(texts: Path, **changes: object) -> BuildOptions:
    given = {"tokenizer": 400, "validation_share": 0.05, "shard_tokens": SHARD_TOKENS} | changes
    given = {"source": str(texts), "rules": load_rules(texts / "rules.yaml")} | given
    return BuildOptions(**given)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def whole(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus, built without interruption in this process."""
    out = tmp_path_factory.mktemp("whole") / "corpus"
    build_from_files(find_corpus(texts, suffixes=(".txt",)), out, options(texts))
    return out


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != ".lock"}


def start(texts: Path, out: Path, *flags: object) -> "subprocess.Popen[str]":
    command = [
        *(sys.executable, TOOL, "build", "--input", texts, "--out", out, "--suffixes", ".txt", "--config"),
        *(texts / "rules.yaml", "--train_tokenizer", 400, "--validation_share", 0.05, "--shard_tokens", SHARD_TOKENS),
        *("--num_workers", 1, *flags),
    ]
    log = out.with_suffix(".log").open("a")
    return subprocess.Popen(list(map(str, command)), stdout=log, stderr=log, text=True, start_new_session=True)


def journal(out: Path) -> list[str]:
    path = out / ".building" / "journal.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def has_come_to(out: Path, lines: int) -> bool:
    return (out / ".building").exists() and len(journal(out)) >= lines


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "corpus"
    for pid in living(tmp_path):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_build_killed_again_and_again_gives_what_an_uncut_one_gives(texts: Path, whole: Path, out: Path) -> None:
    finished: dict[str, int] = {}
    # While the tokenizer is trained; with some shards finished. The tokenizer has a line of its own.
    for lines in (0, 4):
        process = start(texts, out, "--num_workers", 2)
        eventually(partial(has_come_to, out, lines), 60, "the build's progress")
        workers = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL, out.with_suffix(".log").read_text()
        assert not psutil.wait_procs(workers, timeout=10)[1], "workers outlived the build"
        assert not (out / "manifest.json").exists()
        shards = [json.loads(line)["shard"]["path"] for line in journal(out) if "shard" in line]
        finished = {name: (out / name).stat().st_ino for name in shards}
    assert len(finished) >= 3
    with (out / ".building" / "journal.jsonl").open("a") as stream:
        stream.write('{"split": "tra')  # as if killed within a line
    assert start(texts, out, "--num_workers", 0).wait(60) == 0, out.with_suffix(".log").read_text()
    assert re.search(
        r"going on after \d+ finished shards, which hold \d+ documents", out.with_suffix(".log").read_text()
    )
    assert content(out) == content(whole)
    assert {name: (out / name).stat().st_ino for name in finished} == finished, "finished shards were written again"


class CutShort(Corpus):
    """Files whose reading is interrupted, as Ctrl-C does it."""

    def documents(self) -> Iterator[Document]:
        yield from islice(super().documents(), 300)
        raise KeyboardInterrupt


def test_copies_are_told_across_an_interruption(texts: Path, whole: Path, tmp_path: Path) -> None:
    rules = CleaningRules.model_validate({"duplicates": {"near": True, "near_permutations": 32}})
    wanted = options(texts, rules=rules, tokenizer=whole / "tokenizer.json")
    corpus = find_corpus(texts, suffixes=(".txt",))
    with pytest.raises(KeyboardInterrupt):
        build_from_files(CutShort(**vars(corpus)), tmp_path / "cut", wanted)
    assert len(journal(tmp_path / "cut")) > 2 and not list((tmp_path / "cut").glob("*.tmp"))
    for name in ("cut", "uncut"):
        build_from_files(find_corpus(texts, suffixes=(".txt",)), tmp_path / name, wanted)
    assert content(tmp_path / "cut") == content(tmp_path / "uncut")
    removed = json.loads((tmp_path / "cut" / "report.json").read_text())["removed"]
    # Copies stand at the end of the input, their originals at its beginning, in finished shards.
    assert removed["duplicates.exact"]["documents"] >= 20
    assert removed["duplicates.near"]["documents"] >= 1


def test_a_finished_build_is_known_again(
    texts: Path, whole: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    before = content(whole)
    corpus = find_corpus(texts, suffixes=(".txt",))
    assert build_from_files(corpus, whole, options(texts)) == whole / "manifest.json"
    assert any("is complete" in message for message in caplog.messages) and content(whole) == before
    with pytest.raises(ConfigError, match=r"finished corpus in .* had --keep_text = false, now it is true"):
        build_from_files(corpus, whole, options(texts, keep_text=True))
    with pytest.raises(ConfigError, match=r"finished corpus in .* had another input: b\.txt is gone"):
        build_from_files(replace(corpus, files={"a.jsonl": corpus.files["a.jsonl"]}), whole, options(texts))
    monkeypatch.setattr(options_module.sys, "version_info", (3, 99, 0))  # whose letters may be others
    with pytest.raises(ConfigError, match=r'had Python = "3\.\d+", now it is "3\.99"'):
        build_from_files(corpus, whole, options(texts))


def test_an_interrupted_build_refuses_another_input_or_option(texts: Path, tmp_path: Path) -> None:
    out, copy = tmp_path / "out", tmp_path / "copy"
    copy.mkdir()
    (copy / "a.txt").write_text("some words here")
    (copy / "b.txt").write_text("and more of them")
    (copy / "c.jsonl").write_text('{"text": "fine"}\n{broken')

    def build(**changes: object) -> None:
        corpus = find_corpus(copy, suffixes=(".txt",))
        given = {"tokenizer": 300, "source": "x", "rules": load_rules(texts / "rules.yaml")} | changes
        build_from_files(corpus, out, BuildOptions(**given))  # type: ignore[arg-type]

    with pytest.raises(DataError, match="line 2: not a line of JSON"):
        build()
    for changes, message in (
        ({"tokenizer": 301}, "had the tokenizer = 300, now it is 301"),
        ({"shard_tokens": 7}, "had --shard_tokens = 16777216, now it is 7"),
        ({"keep_text": True}, "had --keep_text = false, now it is true"),
        ({"rules": CleaningRules()}, r"had length\.min_words = 3, now it is null"),
    ):
        with pytest.raises(ConfigError, match=message):
            build(**changes)
    (copy / "c.jsonl").write_text('{"text": "fine"}')
    with pytest.raises(ConfigError, match=r"another input: c\.jsonl was changed"):
        build()
    (copy / "c.jsonl").rename(copy / "d.jsonl")
    with pytest.raises(ConfigError, match=r"c\.jsonl is gone \(1 more differ\)"):
        build()


@pytest.mark.slow
def test_a_worker_that_dies_ends_the_build_and_nothing_is_lost(texts: Path, whole: Path, out: Path) -> None:
    process = start(texts, out)

    def workers() -> list[psutil.Process]:
        children = psutil.Process(process.pid).children()
        return [child for child in children if "spawn_main" in " ".join(child.cmdline())]

    eventually(partial(has_come_to, out, 2), 30, "a finished shard")
    workers()[0].kill()
    assert process.wait(20) == 2
    log = out.with_suffix(".log").read_text()
    assert "worker processes died" in log and "Traceback" not in log
    finished = len(journal(out))
    again = start(texts, out)
    eventually(partial(has_come_to, out, finished + 1), 30, "another finished shard")
    started = time.monotonic()
    os.killpg(again.pid, signal.SIGINT)  # as a terminal does
    assert again.wait(20) == 130 and time.monotonic() - started < 10
    log = out.with_suffix(".log").read_text()
    assert "the same command goes on where it was" in log and "Traceback" not in log
    assert not list(out.glob("*.tmp"))
    assert start(texts, out, "--num_workers", 0).wait(60) == 0
    assert content(out) == content(whole)


@pytest.mark.slow
def test_ctrl_c_ends_the_training_of_a_tokenizer(tmp_path: Path, out: Path) -> None:
    source, inputs = random.Random(1), tmp_path / "in"
    inputs.mkdir()
    words = ["".join(source.choices("abcdefghijklmnop", k=60)) for _ in range(60_000)]
    (inputs / "a.txt").write_text(" ".join(words))
    command = [sys.executable, TOOL, "build", "--input", inputs, "--out", out, "--train_tokenizer", 60_000]
    with out.with_suffix(".log").open("w") as log:
        process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log, start_new_session=True)
    eventually(lambda: "training a tokenizer" in out.with_suffix(".log").read_text(), 30, "the training")
    time.sleep(1.5)  # into the training itself, of which nothing is told
    assert process.poll() is None
    started = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(20) == 130 and time.monotonic() - started < 3
    assert "Traceback" not in out.with_suffix(".log").read_text() and not living(out)


def die(items: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_trainer_that_fails_or_dies_is_told() -> None:
    with pytest.raises(ConfigError, match="256 bytes"):
        call_with_stream(partial(train_byte_level_bpe, vocab_size=12), ["text"] * 1000)
    with pytest.raises(DataError, match="trains the tokenizer died"):
        call_with_stream(die, ["text"])


def test_shards_that_nobody_knows_are_left_alone(texts: Path, tmp_path: Path) -> None:
    (tmp_path / "train-000000.tar").write_text("of somebody")
    with pytest.raises(DataError, match=r"holds train-000000\.tar, which no interrupted build left"):
        build_from_files(find_corpus(texts, suffixes=(".txt",)), tmp_path, options(texts))
    assert (tmp_path / "train-000000.tar").read_text() == "of somebody"


def test_a_finished_shard_that_is_gone_is_told(texts: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / ".building").mkdir(parents=True)
    corpus, wanted = find_corpus(texts, suffixes=(".txt",)), options(texts)
    (texts / "broken.jsonl").write_text("{")
    try:
        with pytest.raises(DataError, match="not a line"):
            build_from_files(find_corpus(texts, suffixes=(".txt",)), out, wanted)
        entry = json.loads((whole / "manifest.json").read_text())["splits"]["train"][0]
        with (out / ".building" / "journal.jsonl").open("a") as stream:
            stream.write(json.dumps({"split": "train", "until": 9, "shard": entry}) + "\n")
        with pytest.raises(DataError, match=r"cannot go on: .*train-000000\.tar or its index is missing"):
            build_from_files(find_corpus(texts, suffixes=(".txt",)), out, wanted)
    finally:
        (texts / "broken.jsonl").unlink()
    assert corpus.files
