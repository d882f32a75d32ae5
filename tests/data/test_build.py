import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from tokenizers import Tokenizer

from scaletrain.data.build import build_corpus, is_validation
from scaletrain.data.corpus import Document
from scaletrain.data.manifest import Manifest
from scaletrain.data.shards import ShardReader
from scaletrain.data.tokenizer import load_tokenizer, train_byte_level_bpe
from scaletrain.errors import ConfigError, DataError

TOOL = Path(__file__).parents[2] / "tools" / "make_shards.py"
DOCUMENTS = [Document(f"d{number}", f"document {number} " * (number % 7 + 1)) for number in range(80)]


def make_shards(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def texts_of(manifest: Manifest, split: str) -> list[str]:
    tokenizer = load_tokenizer(manifest.tokenizer_path)
    reader = ShardReader.of_split(manifest, split)
    found = []
    for shard, entry in enumerate(reader.shards):
        for document in range(entry.documents):
            tokens = reader.tokens(shard, document, 0, int(reader.token_counts(shard)[document]))
            assert tokens[-1] == manifest.tokenizer.eos_id
            found.append(tokenizer.decode(tokens[:-1].tolist(), skip_special_tokens=False))
    return found


def test_shards_are_read_by_plain_webdataset(corpus: Manifest) -> None:
    paths = [str(corpus.folder / shard.path) for shard in corpus.split("train")]
    samples = list(webdataset.WebDataset(paths, shardshuffle=False, empty_check=False).decode())
    assert len(samples) == corpus.totals["train"].documents
    assert [sample["__key__"] for sample in samples] == [f"{number:010d}" for number in range(len(samples))]
    tokenizer = load_tokenizer(corpus.tokenizer_path)
    for sample in samples:
        tokens = sample["tokens.npy"]
        assert tokens.dtype == np.uint16 and tokens[-1] == corpus.tokenizer.eos_id
        text = tokenizer.decode(tokens[:-1].tolist(), skip_special_tokens=False)
        assert len(text.encode()) == sample["json"]["bytes"]
        assert sample["json"]["source"].startswith("part")


def test_members_have_no_extended_header(corpus: Manifest) -> None:
    shard = corpus.split("train")[0]
    content = (corpus.folder / shard.path).read_bytes()
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


def test_a_build_that_is_killed_can_be_repeated(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path\n"
        "from scaletrain.data.build import build_corpus; from scaletrain.data.corpus import Document\n"
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
    ShardReader.of_split(manifest, "train").check()
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
    assert "skipped: 1 files (1 of another suffix)" in done.stdout
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
        (("--input", "IN", "--out", "OUT", "--tokenizer", "missing.json"), "missing.json cannot be read"),
    ],
)
def test_mistakes_end_the_tool_with_a_message(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    (tmp_path / "IN").mkdir()
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "IN" / "a.txt").write_text("hello")
    places = {"IN": tmp_path / "IN", "OUT": tmp_path / "OUT", "EMPTY": tmp_path / "EMPTY"}
    done = make_shards("build", *(places.get(argument, argument) for argument in arguments))
    assert done.returncode == 2, done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "OUT" / "manifest.json").exists()
