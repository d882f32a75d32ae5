"""Files are whole whenever somebody reads them, and nothing is left beside them."""

import threading
from pathlib import Path

import pytest

from scaletrain.files import create_text, replace_text


def test_a_reader_never_finds_half_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "told.json"
    texts = [str(number) * 100_000 for number in range(4)]
    replace_text(path, texts[0])

    def write(text: str) -> None:
        for _ in range(50):
            replace_text(path, text)

    writers = [threading.Thread(target=write, args=(text,)) for text in texts]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert path.read_text() in texts
    assert list(tmp_path.iterdir()) == [path]


def test_the_first_one_stays(tmp_path: Path) -> None:
    path = tmp_path / "verdict.json"
    for text in ("the first", "the second"):
        create_text(path, text)
    assert path.read_text() == "the first" and list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "told"
    path.mkdir()
    with pytest.raises(OSError, match="told"):
        replace_text(path, "a text in place of a folder")
    assert list(tmp_path.iterdir()) == [path] and path.is_dir()
