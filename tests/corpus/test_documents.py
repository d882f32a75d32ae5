import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pytest
import webdataset
import zstandard
from pyarrow import parquet

from scaletrain.corpus.documents import Document, find_corpus
from scaletrain.corpus.reading import describe_skipped
from scaletrain.errors import ConfigError, DataError


def lines(*texts: str, field: str = "text") -> bytes:
    return b"".join(json.dumps({field: text, "n": 1}).encode() + b"\n" for text in texts)


def test_a_folder_of_all_kinds_in_an_order_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.txt").write_text("hidden")
    (tmp_path / "b" / "z.txt").write_bytes("zwölf\r\n".encode())
    (tmp_path / "a.py").write_text("pass")
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8")
    (tmp_path / "latin.txt").write_bytes(b"\xe9t\xe9")
    (tmp_path / "nothing.md").write_text("")
    (tmp_path / "p.jsonl").write_bytes(lines("one", "", "two\n") + b"\n")
    (tmp_path / "q.jsonl.gz").write_bytes(gzip.compress(lines("three")))
    frames = zstandard.compress(lines("four")) + zstandard.compress(lines("five"))
    (tmp_path / "r.jsonl.zst").write_bytes(frames)
    corpus = find_corpus(tmp_path)
    assert list(corpus.documents()) == [
        Document("a.py", "pass"),
        Document("b/z.txt", "zwölf\r\n"),
        Document("p.jsonl#1", "one"),
        Document("p.jsonl#3", "two\n"),
        Document("q.jsonl.gz#1", "three"),
        Document("r.jsonl.zst#1", "four"),
        Document("r.jsonl.zst#2", "five"),
    ]
    assert list(corpus.documents()) == list(corpus.documents())
    assert corpus.skipped() == {"empty": 2, "not UTF-8": 1, "of another suffix": 1}
    assert describe_skipped(corpus.skipped()).startswith("4 (2 empty, ")


@pytest.mark.parametrize(
    "name",
    ["A.JSONL.GZ", "a.ndjson", "a.ndjson.gz", "a.ndjson.zst", "c4-train.00000.json.gz", "a.json.zst", "a.Jsonl.Zst"],
)
def test_json_lines_are_known_by_all_their_names(tmp_path: Path, name: str) -> None:
    compress = {"gz": gzip.compress, "st": zstandard.compress}.get(name.lower()[-2:], bytes)
    (tmp_path / name).write_bytes(compress(lines("one", "two") + b'{"text": null}\n'))
    corpus = find_corpus(tmp_path)
    assert [document.text for document in corpus.documents()] == ["one", "two"]
    assert corpus.skipped() == {"null": 1}


def test_zstd_with_a_long_window_is_read(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=28, enable_ldm=False)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()  # which knows no size
    (tmp_path / "a.jsonl.zst").write_bytes(compressor.compress(lines("one")) + compressor.flush())
    assert [document.text for document in find_corpus(tmp_path).documents()] == ["one"]


def test_one_file_is_read_whatever_its_name(tmp_path: Path) -> None:
    path = tmp_path / "README"
    path.write_text("hello")
    assert list(find_corpus(path).documents()) == [Document("README", "hello")]


def test_parquet_and_tars_are_read_beside_the_rest(tmp_path: Path) -> None:
    table = pa.table({"text": pa.array(["one", "", None, "été"], pa.large_string()), "id": [1, 2, 3, 4]})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    with webdataset.TarWriter(str(tmp_path / "b.tar")) as writer:  # with fractions of seconds: pax headers
        writer.write({"__key__": "x/k1", "txt": "two", "json": {"url": "u"}})
        writer.write({"__key__": "x/k2", "json": {"text": "three"}, "cls": 3})
        writer.write({"__key__": "k3", "txt.gz": "four", "pyd": [1]})
        writer.write({"__key__": "k4", "json.gz": {"text": "five"}})
        writer.write({"__key__": "k5", "cls": 7})
    corpus = find_corpus(tmp_path)
    assert [(document.source, document.text) for document in corpus.documents()] == [
        ("a.parquet#1", "one"),
        ("a.parquet#4", "été"),
        ("b.tar#x/k1", "two"),
        ("b.tar#x/k2", "three"),
        ("b.tar#k3", "four"),
        ("b.tar#k4", "five"),
    ]
    assert corpus.skipped() == {"empty": 1, "null": 1, "sample of a tar without txt or json": 1}
    assert corpus.reading.bytes == corpus.size


@pytest.mark.parametrize(
    ("names", "column", "message"),
    [
        (["body"], ["a"], "no column 'text'; there are 'body'.*--text_field"),
        (["text"], [1], "holds int64, not text"),
        (["text", "text"], ["a"], "several columns are named 'text'"),
    ],
)
def test_a_parquet_file_without_one_text_is_refused(
    tmp_path: Path, names: list[str], column: list[object], message: str
) -> None:
    parquet.write_table(pa.Table.from_arrays([pa.array(column)] * len(names), names), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=message):
        list(find_corpus(tmp_path).documents())
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(DataError, match=r"a\.parquet cannot be read after row 0"):
        list(find_corpus(tmp_path).documents())


def test_what_is_no_plain_file_is_counted_and_passed_by(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "again").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "link.txt").symlink_to(tmp_path / "a.txt")
    (tmp_path / "dangling.txt").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "null.jsonl").symlink_to("/dev/null")
    corpus = find_corpus(tmp_path)
    assert [document.source for document in corpus.documents()] == ["a.txt", "link.txt"]
    assert corpus.skipped() == {"dangling link": 1, "link to a folder": 1, "no plain file": 2}
    with pytest.raises(DataError, match=r"pipe\.txt is neither a file nor a folder"):
        find_corpus(tmp_path / "pipe.txt")


def test_what_is_built_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.txt").write_text("built")
    (tmp_path / "b.txt").write_text("text")
    assert list(find_corpus(tmp_path, exclude=tmp_path / "out").files) == ["b.txt"]
    with pytest.raises(ConfigError, match="is the input"):
        find_corpus(tmp_path / "out", exclude=tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "content", "is_corpus"),
    [
        (".building/plan.json", "{}", True),
        ("manifest.json", '{"splits": {}, "tokenizer": {}, "totals": {}, "content": {"field": "tokens.npy"}}', True),
        ("manifest.json", '{"splits": {}, "tokenizer": {}, "totals": {}, "content": {"field": "txt"}}', False),
        ("manifest.json", '["of something else"]', False),
    ],
)
def test_an_older_corpus_in_the_input_is_passed_by(tmp_path: Path, name: str, content: str, is_corpus: bool) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "old" / name).parent.mkdir(parents=True)
    (tmp_path / "old" / name).write_text(content)
    (tmp_path / "old" / "b.txt").write_text("inside")
    corpus = find_corpus(tmp_path)
    assert ("old/b.txt" in corpus.files) == (not is_corpus)
    assert corpus.skipped() == ({"a corpus": 1} if is_corpus else {})


def test_the_first_files_of_each_reason_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(5):
        (tmp_path / f"{number}.jpg").write_bytes(b"")
    (tmp_path / "a.txt").write_bytes(b"\xe9")
    caplog.set_level("INFO")
    corpus = find_corpus(tmp_path)
    assert list(corpus.documents()) == []
    corpus.log_skipped_files()
    told = sorted(message for message in caplog.messages if message.startswith("skipped"))
    assert told[0] == "skipped, not UTF-8: a.txt"
    assert told[1].startswith("skipped, of another suffix: ") and told[1].endswith(" and 2 more")


def test_suffixes_and_the_field_of_the_text_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "a.foo").write_text("foo")
    (tmp_path / "b.txt").write_text("txt")
    (tmp_path / "c.jsonl").write_bytes(lines("json", field="content"))
    corpus = find_corpus(tmp_path, text_field="content", suffixes=(".foo",))
    assert [document.text for document in corpus.documents()] == ["foo", "json"]


def test_an_empty_or_missing_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        find_corpus(tmp_path / "nowhere")
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"is empty.*1 of another suffix.*--suffixes"):
        find_corpus(tmp_path)


def blocks_of_zstd(*parts: bytes) -> tuple[bytes, int]:
    """A frame with a block for each part, and where its first block ends."""
    compressor = zstandard.ZstdCompressor().compressobj()
    blocks = [compressor.compress(part) + compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK) for part in parts]
    return b"".join(blocks) + compressor.flush(), len(blocks[0])


ZSTD, AT_A_LINE = blocks_of_zstd(lines("one"), lines("two"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", lines("fine") + b"{broken\n", r"a\.jsonl, line 2: not a line of JSON"),
        ("a.jsonl", lines("x", field="body"), r"line 1: no text in field 'text'; .*'body', 'n'.*--text_field"),
        ("a.jsonl", b"[1]\n", "is not an object"),
        ("a.jsonl", b'{"text": 3}\n', "field 'text' holds int, not text"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "not a line of JSON"),
        ("a.jsonl.gz", gzip.compress(lines(*map(str, range(9999))))[:-20], "is truncated behind line 99"),
        ("a.jsonl.gz", b"not gzip", "cannot be read after line 0"),
        ("a.jsonl.gz", b"", "a.jsonl.gz is truncated behind line 0"),
        ("a.jsonl.zst", b"not zstd at all", "cannot be read after line 0"),
        ("a.jsonl.zst", b"", "is truncated behind line 0"),
        ("a.jsonl.zst", ZSTD[:-1], "is truncated behind line 2"),
        ("a.jsonl.zst", ZSTD[:AT_A_LINE], "is truncated behind line 1"),
        ("a.jsonl.zst", ZSTD + ZSTD[:9], "is truncated behind line 2"),
    ],
)
def test_damaged_lines_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(find_corpus(tmp_path).documents())
