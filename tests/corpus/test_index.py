import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import webdataset

from scaletrain.corpus.index import index_corpus
from scaletrain.corpus.shard_list import list_shards
from scaletrain.data.foreign import DocumentDecoder, content_of
from scaletrain.data.manifest import Content, Manifest
from scaletrain.data.shards import ShardReader
from scaletrain.data.tokenizer import find_borders, load_tokenizer, train_byte_level_bpe
from scaletrain.errors import ConfigError, DataError
from scaletrain.storage.fetch import FetchPolicy
from scaletrain.storage.storage import Storage
from scaletrain.storage.survey import Surveyor

TOOL = Path(__file__).parents[2] / "tools" / "make_shards.py"
TEXTS = [f"hello wörld {number} " * (number % 9 + 1) for number in range(90)]
FIELDS = {"txt": None, "json": "text", "npy": None, "txt.gz": None, "tokens.npy.gz": None, "*.npy": None}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards that plain webdataset wrote, with its float times, and a tokenizer."""
    folder = tmp_path_factory.mktemp("source")
    tokenizer = train_byte_level_bpe(TEXTS, 300)
    tokenizer.save(str(folder / "tok.json"))
    with webdataset.ShardWriter(str(folder / "part-%06d.tar"), maxcount=40, verbose=0) as writer:
        for number, text in enumerate(TEXTS):
            tokens = np.array(tokenizer.encode(text).ids)
            writer.write(
                {
                    "__key__": f"a.b/c/é{number}",
                    "txt": text,
                    "json": {"text": text, "n": number},
                    "npy": tokens,
                    "txt.gz": text,
                    "tokens.npy.gz": tokens,
                    "pkl": b"never read",
                }
            )
    return folder


def patterns(source: Path) -> str:
    return f"{source}/part-{{000000..000002}}.tar"


def documents(
    manifest: Manifest, split: str = "train", storage: Storage | None = None
) -> Iterator[tuple[str, list[int]]]:
    """Reads each document as training does."""
    reader = ShardReader(manifest, split, storage)
    for shard in range(len(reader.shards)):
        for document, (key, count) in enumerate(zip(reader.keys(shard), reader.token_counts(shard), strict=True)):
            yield key, reader.tokens(shard, document, 0, int(count)).tolist()


@pytest.mark.parametrize("field", FIELDS)
def test_documents_are_those_that_webdataset_decodes(source: Path, tmp_path: Path, field: str) -> None:
    content = content_of(field, FIELDS[field])
    manifest = Manifest.open(index_corpus(patterns(source), content, source / "tok.json", tmp_path / "manifest.json"))
    assert manifest.content == content and (manifest.totals["train"].documents, len(manifest.splits)) == (90, 2)
    tokenizer = load_tokenizer(source / "tok.json")
    paths = [str(source / f"part-{number:06d}.tar") for number in range(3)]
    selected = webdataset.WebDataset(paths, shardshuffle=False, empty_check=False).decode(only=["txt"])
    expected = [(sample["__key__"], sample["txt"]) for sample in selected]
    found = [(key, tokenizer.decode(tokens[:-1])) for key, tokens in documents(manifest)]
    assert found == expected
    assert all(tokens[-1] == manifest.tokenizer.eos_id for _, tokens in documents(manifest))
    assert manifest.totals["train"].bytes == sum(len(text.encode()) for _, text in expected)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_result_is_the_same_whatever_the_number_of_processes(source: Path, tmp_path: Path) -> None:
    for workers in (0, 2):
        out = tmp_path / str(workers) / "manifest.json"
        index_corpus(patterns(source), content_of("txt"), source / "tok.json", out, num_workers=workers)
    assert tree(tmp_path / "0") == tree(tmp_path / "2")


def test_an_interrupted_command_goes_on_where_it_was(source: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(source, shards)
    os.mkfifo(tmp_path / "fifo")
    out = tmp_path / "out" / "manifest.json"
    command = [sys.executable, str(TOOL), "index", "--field", "txt", "--tokenizer", str(shards / "tok.json")]
    # The last command waits for ever, to be killed then.
    command += ["--shards", f"{shards}/part-{{000000,000001}}.tar,pipe:cat {tmp_path}/fifo", "--allow_pipe", "true"]
    command += ["--out", str(out), "--num_workers", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    writer = os.open(tmp_path / "fifo", os.O_WRONLY)  # it got there
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    os.close(writer)
    assert sorted(path.name for path in out.parent.rglob("*.npz")) == ["part-000000.index.npz", "part-000001.index.npz"]
    with (out.parent / "index" / "journal.jsonl").open("ab") as journal:
        journal.write(b'{"location": "cut')
    before = {path: path.stat().st_mtime_ns for path in out.parent.rglob("*.npz")}
    index_corpus(patterns(shards), content_of("txt"), shards / "tok.json", out)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    whole = tmp_path / "whole" / "manifest.json"
    index_corpus(patterns(shards), content_of("txt"), shards / "tok.json", whole)
    assert tree(out.parent) == tree(whole.parent)


def test_what_an_interrupted_command_left_is_not_mixed_with_other_options(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "manifest.json"
    shard = str(shutil.copy(source / "part-000000.tar", tmp_path / "x.tar"))
    index_corpus(shard, content_of("txt"), source / "tok.json", out)
    with pytest.raises(DataError, match=r"manifest\.json exists already"):
        index_corpus(shard, content_of("txt"), source / "tok.json", out)
    assert Manifest.open(out).split("train")[0].path == "x.tar"  # below the manifest, which can be moved with it
    out.unlink()
    with pytest.raises(ConfigError, match=r"were made with field = 'txt', now it is 'npy'"):
        index_corpus(shard, content_of("npy"), source / "tok.json", out)
    train_byte_level_bpe(TEXTS, 280).save(str(tmp_path / "other.json"))
    with pytest.raises(DataError, match="is another tokenizer than"):
        index_corpus(shard, content_of("txt"), tmp_path / "other.json", out)
    # A damaged index is made again.
    index = tmp_path / "index" / "x.index.npz"
    whole = index.read_bytes()
    index.write_bytes(whole[:-1] + b"?")
    index_corpus(shard, content_of("txt"), source / "tok.json", out)
    assert index.read_bytes() == whole
    out.unlink()
    # A shard that was changed since is indexed again.
    shutil.copy(source / "part-000002.tar", shard)
    assert (
        Manifest.open(index_corpus(shard, content_of("txt"), source / "tok.json", out)).totals["train"].documents == 10
    )


def test_shards_of_one_name_and_held_out_ones(source: Path, tmp_path: Path) -> None:
    for number, folder in enumerate(("a", "b", "c")):
        (tmp_path / folder).mkdir()
        shutil.copy(source / f"part-{number:06d}.tar", tmp_path / folder / "x.tar")
    for validation, name in ((f"{tmp_path}/c/*.tar", "pattern"), (1, "last")):
        out = tmp_path / name / "manifest.json"
        shards = f"{tmp_path}/{{a,b}}/x.tar,{tmp_path}/[c]/x.tar"
        manifest = Manifest.open(index_corpus(shards, content_of("txt"), source / "tok.json", out, validation))
        assert [totals.documents for totals in manifest.totals.values()] == [80, 10]
        names = {shard.index for shards in manifest.splits.values() for shard in shards}
        assert len(names) == 3 and "index/x.index.npz" in names
        assert [key for key, _ in documents(manifest, "validation")] == [f"a.b/c/é{number}" for number in range(80, 90)]
    with pytest.raises(ConfigError, match="All 3 shards are held out"):
        index_corpus(shards, content_of("txt"), source / "tok.json", tmp_path / "m.json", 3)


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return path


def test_what_is_left_out_is_counted(source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    members = [("a.json", b"{}"), ("b.json", b"{}"), ("../a.txt", b"up"), ("/b.txt", b"root"), ("e.txt", b"")]
    path = write_tar(tmp_path / "a.tar", members)
    manifest = Manifest.open(index_corpus(str(path), content_of("txt"), source / "tok.json", tmp_path / "m.json"))
    assert [key for key, _ in documents(manifest)] == ["../a", "/b"]
    told = {message for message in caplog.messages if message.startswith("left out")}
    assert told == {
        "left out: 1 link, device or the like",
        "left out: 2 sample without txt",
        "left out: 1 document empty",
    }


def test_a_document_that_cannot_be_used_ends_the_work_or_is_left_out(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    members = [("a.json", b'{"text": "x"}'), ("b.json", b"[" * 10_000), ("c.json", b'{"text": 1}')]
    path = write_tar(tmp_path / "a.tar", members)
    arguments: Any = (str(path), content_of("json", "text"), source / "tok.json", tmp_path / "m.json")
    with pytest.raises(DataError, match=r"a\.tar, 'b\.json' is not JSON.*--on_bad_document skip"):
        index_corpus(*arguments)
    shutil.rmtree(tmp_path / "index")
    manifest = Manifest.open(index_corpus(*arguments, on_bad_document="skip"))
    assert [key for key, _ in documents(manifest)] == ["a"]
    assert {"left out: 1 document not JSON", "left out: 1 document not text"} < set(caplog.messages)


@pytest.mark.parametrize(
    ("members", "field", "message"),
    [
        ([("a.txt", b"x"), ("a.json", b""), ("a.txt", b"y")], "txt", r"sample 'a' has field 'txt' twice"),
        (
            [("a.npy", b"x"), ("a.txt", b""), ("b.txt", b"")],
            "txt",
            r"gives no document in field 'txt': 2 document empty",
        ),
        (
            [("a.npy", b"x"), ("a.txt", b""), ("b.txt", b"")],
            "md.txt",
            r"has no field 'md\.txt'; its fields are: 2 'txt', 1 'npy'",
        ),
        ([("a.tokens.npy", b"x")], "tokens.npy", r"no json before its tokens.*--field '\*\.npy'"),
    ],
)
def test_shards_that_cannot_be_used_are_named(
    source: Path, tmp_path: Path, members: list[tuple[str, bytes]], field: str, message: str
) -> None:
    path = write_tar(tmp_path / "a.tar", members)
    content = content_of(field)
    with pytest.raises(DataError, match=message):
        index_corpus(str(path), content, source / "tok.json", tmp_path / "m.json")


def test_shards_of_our_own_are_read_as_they_lie_there(source: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(source / "tok.json")
    eos = find_borders(tokenizer).eos_id
    tokens = [np.array([*tokenizer.encode(text).ids, eos], np.uint16) for text in TEXTS[:5]]

    def write(name: str, arrays: list[Any]) -> str:
        with webdataset.TarWriter(str(tmp_path / name)) as writer:
            for number, array in enumerate(arrays):
                writer.write({"__key__": str(number), "json": {"bytes": 3}, "tokens.npy": array})
        return str(tmp_path / name)

    out = tmp_path / "manifest.json"
    own = content_of("tokens.npy")
    manifest = Manifest.open(index_corpus(write("own.tar", tokens), own, source / "tok.json", out))
    assert manifest.content == Content() and manifest.totals["train"].tokens == sum(map(len, tokens))
    for name, arrays, message in (
        ("ends.tar", [tokens[0][:-1]], f"does not end with token {eos}.*--field"),
        ("ids.tar", [np.array([60_000, eos], np.uint16)], "holds token 60000"),
        ("wide.tar", [tokens[0].astype(np.uint32)], "type uint32, where the tokenizer needs uint16"),
    ):
        with pytest.raises(DataError, match=message):
            index_corpus(write(name, arrays), own, source / "tok.json", tmp_path / message[:4] / "m.json")


def test_remote_shards_are_fetched_and_not_kept(source: Path, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for number in range(3):
        memory.put_file(str(source / f"part-{number:06d}.tar"), f"/corpus/part-{number}.tar")
    try:
        out = tmp_path / "manifest.json"
        arguments: Any = ("memory://corpus/part-*.tar", content_of("txt"), source / "tok.json", out)
        memory.put_file(str(source / "part-000002.tar"), "/corpus/part-0.tar")
        index_corpus(*arguments)
        out.unlink()
        memory.rm("/corpus/part-0.tar")
        with pytest.raises(DataError, match=r"part-0\.tar cannot be read: not found"):
            index_corpus("memory://corpus/part-{0..2}.tar", *arguments[1:])
        # One that has another size now is indexed again.
        memory.put_file(str(source / "part-000000.tar"), "/corpus/part-0.tar")
        manifest = Manifest.open(index_corpus(*arguments))
        assert [shard.path for shard in manifest.split("train")] == [f"memory://corpus/part-{n}.tar" for n in range(3)]
        local = index_corpus(patterns(source), content_of("txt"), source / "tok.json", tmp_path / "local" / "m.json")
        assert manifest.fingerprint == Manifest.open(local).fingerprint
        assert {path.suffix for path in (tmp_path / "index").iterdir()} <= {".npz", ".jsonl", ".lock", ""}
        cached = Storage(cache_dir=tmp_path / "cache", cache_bytes=1 << 20)
        assert list(documents(manifest, storage=cached)) == list(documents(Manifest.open(local)))
    finally:
        memory.rm("/corpus", recursive=True)


def test_patterns_are_expanded_and_mistakes_in_them_told(source: Path) -> None:
    surveyor = Surveyor(FetchPolicy(), lambda kind, **fields: None)
    shards = [str(source / f"part-{number:06d}.tar") for number in range(3)]
    assert list_shards(patterns(source), surveyor) == shards
    assert list_shards(f"{source}/*.tar", surveyor) == list_shards(f"{source}/part-00000?.tar,", surveyor) == shards
    urls = list_shards("https://h/{a,b}/{00..01}.tar, s3://b/x.tar?versionId=1", surveyor)
    assert urls == [f"https://h/{f}/{n}.tar" for f in "ab" for n in ("00", "01")] + ["s3://b/x.tar?versionId=1"]
    piped = Surveyor(FetchPolicy(allow_pipe=True), lambda kind, **fields: None)
    commands = "pipe:curl -H a,b h/{0..1} | awk '{print $1}', pipe:cat ${HOME}/x"
    found = [*(f"pipe:curl -H a,b h/{n} | awk '{{print $1}}'" for n in (0, 1)), "pipe:cat ${HOME}/x"]
    assert list_shards(commands, piped) == found
    assert list_shards(f"{shards[0]},{shards[1]},{commands}", piped) == [*shards[:2], *found]
    for pattern, message in (
        (f"{source}/none-*.tar", "fits no file"),
        (f"{source}/*.tar,{shards[1]}", r"part-000001\.tar is given 2 times"),
        (" , ", "No shard is named"),
        ("a{1..2", "not balanced"),
        ("pipe:cat {a,b}", r"would run a command.*--data\.allow_pipe true \(tools: --allow_pipe\)"),
        (os.fsdecode(b"/d/a\xff.tar"), r"'/d/a\\udcff\.tar' holds control characters or bytes that are not UTF-8"),
        ("/d/a\n.tar", r"'/d/a\\n\.tar' holds control characters"),
        ("https://u:p@h/a.tar", "names a user or a password"),
    ):
        with pytest.raises(DataError, match=message):
            list_shards(pattern, surveyor)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fifo", r"fifo is no regular file"),
        ("/dev/zero", r"/dev/zero is no regular file"),
        ("none.tar", r"none\.tar cannot be read: No such file"),
        (
            "memory://none/a.tar",
            r"a\.tar cannot be read: not found\. Check its name and what lies there\.",
        ),
    ],
)
def test_what_is_no_shard_is_named(source: Path, tmp_path: Path, name: str, message: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(DataError, match=message):
        location = name if "://" in name else str(tmp_path / name)
        index_corpus(location, content_of("txt"), source / "tok.json", tmp_path / "m.json")


def test_a_manifest_that_could_not_be_written_is_refused_before_the_work(source: Path, tmp_path: Path) -> None:
    for name in ("manifest.txt", os.fsdecode(b"\xff.json")):
        with pytest.raises(ConfigError, match="must be the manifest to write"):
            index_corpus(patterns(source), content_of("txt"), source / "tok.json", tmp_path / name)


def test_names_are_cut_and_commands_are_not_told(source: Path, tmp_path: Path) -> None:
    shard = shutil.copy(source / "part-000002.tar", tmp_path / ("é" * 120 + ".tar"))
    shards = f"{shard},pipe:SECRET=1,2 cat {source}/part-{{000000,000001}}.tar"
    policy = FetchPolicy(allow_pipe=True)
    out = tmp_path / "out" / "m.json"
    index_corpus(shards, content_of("txt"), source / "tok.json", out, policy=policy)
    fields = json.loads(out.read_text())
    assert fields["source"] == f"{shard},pipe: ..."
    names = [entry["index"] for entry in fields["splits"]["train"]]
    assert names[0] == f"index/{'é' * 50}.index.npz" and len(set(names)) == 3
    # What a command gives is taken as it was.
    out.unlink()
    before = tree(out.parent)
    index_corpus(shards, content_of("txt"), source / "tok.json", out, policy=policy)
    assert {name: content for name, content in tree(out.parent).items() if name != "m.json"} == before


def test_each_document_of_a_window_is_decoded_once(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tar(tmp_path / "a.tar", [(f"{number}.txt", b"text %d" % number) for number in range(400)])
    manifest = Manifest.open(index_corpus(str(path), content_of("txt"), source / "tok.json", tmp_path / "m.json"))
    reader, decoded = ShardReader(manifest, "train"), []
    read = DocumentDecoder.read
    monkeypatch.setattr(DocumentDecoder, "read", lambda *arguments: decoded.append(1) or read(*arguments))
    for _ in range(2):
        for document in range(400):
            reader.tokens(0, document, 0, 2)
    assert len(decoded) == 400


@pytest.mark.slow
def test_the_tool_indexes_shards(source: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(TOOL), "index", "--shards", patterns(source), "--field", "json", "--key", "text"]
    command += ["--tokenizer", str(source / "tok.json"), "--out", str(tmp_path / "m.json"), "--num_workers", "0"]
    done = subprocess.run([*command, "--validation_shards", "1"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "train: 2 shards, 80 documents" in done.stdout and "validation: 1 shards, 10 documents" in done.stdout
    assert json.loads((tmp_path / "m.json").read_text())["content"] == {"field": "json", "key": "text"}
    done = subprocess.run([*command, "--validation_share", "1"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "validation_share" in done.stderr
