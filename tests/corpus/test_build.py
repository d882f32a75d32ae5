import json
import logging
import random
import runpy
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from tokenizers import Tokenizer, models

from scaletrain.corpus.build import build_corpus, build_from_files
from scaletrain.corpus.documents import Document, find_corpus
from scaletrain.corpus.options import BuildOptions
from scaletrain.corpus.splits import is_validation
from scaletrain.data.manifest import Manifest
from scaletrain.data.shards import ShardReader
from scaletrain.data.tokenizer import load_tokenizer, train_byte_level_bpe
from scaletrain.errors import ConfigError, DataError

TOOL = Path(__file__).parents[2] / "tools" / "make_shards.py"
DOCUMENTS = [Document(f"d{number}", f"document {number} " * (number % 7 + 1)) for number in range(80)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    out = tmp_path_factory.mktemp("corpus")
    return Manifest.open(build_corpus(lambda: DOCUMENTS, out, 300, "invented", validation_share=0.2, shard_tokens=700))


def make_shards(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def texts_of(manifest: Manifest, split: str) -> list[str]:
    tokenizer = load_tokenizer(Path(manifest.locate(manifest.tokenizer.file)))
    reader = ShardReader(manifest, split)
    found = []
    for shard, entry in enumerate(reader.shards):
        for document in range(entry.documents):
            tokens = reader.tokens(shard, document, 0, int(reader.token_counts(shard)[document]))
            assert tokens[-1] == manifest.tokenizer.eos_id
            found.append(tokenizer.decode(tokens[:-1].tolist(), skip_special_tokens=False))
    return found


def test_shards_are_read_by_plain_webdataset(corpus: Manifest) -> None:
    paths = [corpus.locate(shard.path) for shard in corpus.split("train")]
    samples = list(webdataset.WebDataset(paths, shardshuffle=False, empty_check=False).decode())
    assert len(samples) == corpus.totals["train"].documents
    assert [sample["__key__"] for sample in samples] == [f"{number:010d}" for number in range(len(samples))]
    tokenizer = load_tokenizer(Path(corpus.locate(corpus.tokenizer.file)))
    for sample in samples:
        tokens = sample["tokens.npy"]
        assert tokens.dtype == np.uint16 and tokens[-1] == corpus.tokenizer.eos_id
        text = tokenizer.decode(tokens[:-1].tolist(), skip_special_tokens=False)
        assert len(text.encode()) == sample["json"]["bytes"]
        assert sample["json"]["source"].startswith("d")


def test_members_have_no_extended_header(corpus: Manifest) -> None:
    shard = corpus.split("train")[0]
    content = Path(corpus.locate(shard.path)).read_bytes()
    # A header and one block of content for the facts, a header and the tokens' blocks; then the end of the tar.
    assert content[156:157] == b"0" and content[1024 + 156 : 1024 + 157] == b"0"


def test_every_document_is_in_one_split_and_the_split_follows_the_text(tmp_path: Path) -> None:
    forward = Manifest.open(build_corpus(lambda: DOCUMENTS, tmp_path / "a", 300, "x", validation_share=0.3))
    backward = Manifest.open(build_corpus(lambda: DOCUMENTS[::-1], tmp_path / "b", 300, "x", validation_share=0.3))
    train, validation = texts_of(forward, "train"), texts_of(forward, "validation")
    assert sorted(train + validation) == sorted(document.text for document in DOCUMENTS)
    assert 10 < len(validation) < 40
    assert all(is_validation(text, 0.3) for text in validation)
    assert sorted(texts_of(backward, "validation")) == sorted(validation)
    assert train == [document.text for document in DOCUMENTS if not is_validation(document.text, 0.3)]


def test_a_large_vocabulary_and_a_first_token_are_kept(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_str(train_byte_level_bpe(["abc"], 257).to_str())
    tokenizer.add_tokens([f"<{number}>" for number in range(2**16)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    documents = [Document("a", "abc <65535> x"), Document("b", "y" * 50)]
    out = tmp_path / "out"
    manifest = Manifest.open(build_corpus(lambda: documents, out, tmp_path / "tokenizer.json", "x", validation_share=0))
    assert manifest.dtype == "uint32" and manifest.tokenizer.vocab_size > 2**16
    assert texts_of(manifest, "train") == [document.text for document in documents]
    assert (out / "tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()


def test_a_tokenizer_that_evaluation_cannot_use_is_refused_before_any_work(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"<eos>": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match=r"not byte-level.*train one with tools/make_shards\.py"):
        build_corpus(lambda: pytest.fail("was read"), tmp_path / "out", tmp_path / "tokenizer.json", "x")


def test_a_text_is_kept_beside_its_tokens_when_asked(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, text in (("a", "é\r\n"), ("b", "two")):
        (tmp_path / "in" / f"{name}.txt").write_bytes(text.encode())
    options = BuildOptions(300, "x", validation_share=0, keep_text=True)
    build_from_files(find_corpus(tmp_path / "in"), tmp_path / "out", options)
    samples = webdataset.WebDataset(str(tmp_path / "out/train-000000.tar"), shardshuffle=False, empty_check=False)
    assert [sample["txt"].decode() for sample in samples] == ["é\r\n", "two"]
    with tarfile.open(tmp_path / "out/train-000000.tar") as tar:
        assert {(member.mtime, member.uid, member.mode, len(member.pax_headers)) for member in tar} == {
            (0, 0, 0o444, 0)
        }
    # Read as input, such shards are documents again.
    again = [document.text for document in find_corpus(tmp_path / "out", suffixes=()).documents()]
    assert again == ["é\r\n", "two"]


def test_a_line_without_a_space_does_not_stall_the_trainer(tmp_path: Path) -> None:
    # Uncut, this takes 46 s instead of 0.7; a word of the alphabet's letters at random has few pairs that are frequent.
    run = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz", k=400_000))
    start = time.process_time()
    build_corpus(lambda: [Document("a", "some words"), Document("b", run)], tmp_path, 600, "x", validation_share=0)
    assert time.process_time() - start < 15
    manifest = Manifest.open(tmp_path)
    assert texts_of(manifest, "train") == ["some words", run]


def test_an_empty_corpus_or_one_that_is_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="corpus is empty"):
        build_corpus(lambda: [], tmp_path / "a", 300, "x")
    assert not (tmp_path / "a" / "manifest.json").exists()
    build_corpus(lambda: DOCUMENTS, tmp_path / "b", 300, "x")
    with pytest.raises(DataError, match="holds a corpus already"):
        build_corpus(lambda: DOCUMENTS, tmp_path / "b", 300, "x")
    with pytest.raises(ConfigError, match=r"validation_share is 1\.5"):
        build_corpus(lambda: DOCUMENTS, tmp_path / "c", 300, "x", validation_share=1.5)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        build_corpus(lambda: DOCUMENTS, tmp_path / "file" / "c", 300, "x")


def test_a_build_that_fails_leaves_no_half_shard(tmp_path: Path) -> None:
    def documents() -> Any:
        yield from DOCUMENTS[:60]
        raise DataError("the input broke off")

    tokenizer = tmp_path / "tokenizer.json"
    train_byte_level_bpe(["document"], 300).save(str(tokenizer))
    out = tmp_path / "out"
    with pytest.raises(DataError, match="broke off"):
        build_corpus(documents, out, tokenizer, "x", shard_tokens=100)
    assert not list(out.glob("*.tmp")) and not (out / "manifest.json").exists()


@pytest.mark.slow
def test_a_build_that_is_killed_can_be_repeated(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path\n"
        "from scaletrain.corpus.build import build_corpus; from scaletrain.corpus.documents import Document\n"
        "calls = []\n"
        "def documents():\n"
        "    calls.append(1)\n"
        "    for n in range(80):\n"
        "        long = len(calls) > 1 and n < 5\n"
        "        yield Document(f'd{n}', f'document {n} ' * (100_000 if long else 1))\n"
        "        if n == 40 and len(calls) > 1: print('half', flush=True); time.sleep(60)\n"
        "build_corpus(documents, Path(sys.argv[1]), 300, 'x', shard_tokens=100_000)"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "half\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert list(tmp_path.glob("train-*")) and not (tmp_path / "manifest.json").exists()
    manifest = Manifest.open(build_corpus(lambda: DOCUMENTS, tmp_path, 300, "x", shard_tokens=300))
    ShardReader(manifest, "train").check()
    assert not list(tmp_path.glob("*.tmp"))


def test_the_tool_builds_a_corpus_of_a_folder(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for document in DOCUMENTS:
        (texts / f"{document.source}.txt").write_text(document.text)
    (texts / "image.png").write_bytes(b"")
    (texts / "more.jsonl").write_text(json.dumps({"body": "from a line"}) + "\n")
    done = make_shards(
        *("build", "--input", texts, "--out", tmp_path / "2024_01", "--train_tokenizer", "300"),
        *("--validation_share", "0.25", "--shard_tokens", "200", "--text_field", "body"),
    )
    assert done.returncode == 0, done.stderr
    assert "skipped: 1 (1 of another suffix)" in done.stdout
    manifest = Manifest.open(tmp_path / "2024_01")
    assert len(manifest.split("train")) > 2
    assert sum(totals.documents for totals in manifest.totals.values()) == len(DOCUMENTS) + 1
    assert "from a line" in texts_of(manifest, "train") + texts_of(manifest, "validation")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--input", "IN", "--out", "OUT"), "exactly one is needed"),
        (("--input", "IN", "--out", "OUT", "--train_tokenizer", "3e2x"), "--train_tokenizer is '3e2x'"),
        (("--input", "IN", "--out", "OUT", "--train_tokenizer", "12"), "--train_tokenizer is '12'"),
        (("--input", "IN", "--out", "OUT", "--train_tokenizer", "300", "--shard_token", "9"), "--shard_token"),
        (("--input", "missing", "--out", "OUT", "--train_tokenizer", "300"), "does not exist"),
        (("--input", "EMPTY", "--out", "OUT", "--train_tokenizer", "300"), "is empty"),
        (("--input", "IN", "--train_tokenizer", "300", "--out"), "--out needs a value"),
        (("--input", "IN", "--out", "OUT", "--train_tokenizer", "300", "--num_workers", "-1"), "must be at least 0"),
        (("--input", "IN", "--out", "IN", "--train_tokenizer", "300"), "is the input"),
        (("--input", "IN", "--out", "OUT", "--train_tokenizer", "300", "--config", "no.yaml"), "does not exist"),
        (
            ("--input", "IN", "--out", "OUT", "--train_tokenizer", "300", "--suffixes", ".txt,md"),
            "'md' must begin with",
        ),
        (
            (
                "--input",
                "IN",
                "--out",
                "OUT",
                "--train_tokenizer",
                "300",
                "--suffixes",
                " .TXT, .x",
                "--config",
                "RULES",
            ),
            "1 documents, 0.0 MB; removed by length.min_words: 1 documents, 0.0 MB; skipped: 1 (1 of another suffix)",
        ),
        (("--input", "IN", "--out", "OUT", "--tokenizer", "missing.json"), "missing.json cannot be read"),
    ],
)
def test_mistakes_end_the_tool_with_a_message(
    tmp_path: Path,
    arguments: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "IN").mkdir()
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "IN" / "a.txt").write_text("hello")
    (tmp_path / "IN" / "b.jpg").write_text("")
    (tmp_path / "RULES").write_text("length: {min_words: 9}")
    places = {name: tmp_path / name for name in ("IN", "OUT", "EMPTY", "RULES")}
    given = [str(places.get(argument, argument)) for argument in arguments]
    monkeypatch.setattr(sys, "argv", [str(TOOL), "build", *given])
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(TOOL), run_name="__main__")
    told = capsys.readouterr().err
    assert ended.value.code == 2, told
    assert message in told and "Traceback" not in told
    assert not (tmp_path / "OUT" / "manifest.json").exists()
