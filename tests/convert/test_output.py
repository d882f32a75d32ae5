"""A result appears complete or not at all, and a refusal leaves nothing."""

from pathlib import Path

import pytest

from scaletrain.convert.output import new_file, new_folder
from scaletrain.errors import ConfigError


def test_a_refusal_leaves_no_folder_above_it(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for out in (tmp_path / "a" / "b" / "out", tmp_path / "there" / "c" / "out"):
        with pytest.raises(ConfigError, match="no model"), new_folder(out) as draft:
            (draft / "half").touch()
            raise ConfigError("no model")
    with pytest.raises(ConfigError, match="File name too long"), new_file(tmp_path / "d" / ("x" * 250)):
        pass
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["there"]


def test_the_folders_above_a_result_stay(tmp_path: Path) -> None:
    with new_file(tmp_path / "a" / "b" / "out") as draft:
        draft.write_text("all")
    assert (tmp_path / "a" / "b" / "out").read_text() == "all"
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["out"]


@pytest.mark.parametrize("out", ["/", ".", "..", ""])
def test_what_exists_is_refused(out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ConfigError, match="exists already"), new_folder(Path(out)):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["here"]


def test_a_file_where_a_folder_should_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be made"), new_folder(tmp_path / "file" / "a" / "out"):
        pass


def test_a_link_in_the_way_is_removed_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "kept").touch()
    (tmp_path / ".out.partial").symlink_to(tmp_path / "other")
    with new_folder(tmp_path / "out") as draft:
        (draft / "new").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new"]
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["kept"]
