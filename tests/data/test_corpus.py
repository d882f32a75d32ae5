import gzip
import json
from pathlib import Path

import pytest
import zstandard

from scaletrain.data.corpus import Document, find_corpus
from scaletrain.errors import DataError


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
    assert corpus.skipped == {"photo.jpg": "of another suffix", "latin.txt": "not UTF-8", "nothing.md": "empty"}
    assert corpus.describe_skipped().startswith("3 files (")


def test_one_file_is_read_whatever_its_name(tmp_path: Path) -> None:
    path = tmp_path / "README"
    path.write_text("hello")
    assert list(find_corpus(path).documents()) == [Document("README", "hello")]


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


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", lines("fine") + b"{broken\n", r"a\.jsonl, line 2: not a line of JSON"),
        ("a.jsonl", lines("x", field="body"), r"line 1: no text in field 'text'; .*'body', 'n'.*--text_field"),
        ("a.jsonl", b"[1]\n", "is not an object"),
        ("a.jsonl", b'{"text": 3}\n', "field 'text' holds int, not text"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "not a line of JSON"),
        ("a.jsonl.gz", gzip.compress(lines(*map(str, range(9999))))[:-20], r"a\.jsonl\.gz cannot be read after line"),
        ("a.jsonl.gz", b"not gzip", "cannot be read after line 0"),
        ("a.jsonl.zst", b"not zstd at all", "cannot be read after line 0"),
    ],
)
def test_damaged_lines_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(find_corpus(tmp_path).documents())
