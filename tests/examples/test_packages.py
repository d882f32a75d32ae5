import gzip
import lzma
import os
import subprocess
import sys
from pathlib import Path

import pytest
import xxhash

from examples.debian.packages import (
    CAT_FILE,
    Description,
    fetch_lists,
    read_description,
    read_packages,
    read_stanzas,
    release_of,
)
from scaletrain.errors import DataError
from tests.examples.invented_lists import Entry, write_lists

ZERO_AD = Entry(
    name="0ad-data",
    section="games",
    installed_kib=3218736,
    english=(
        "Real-time strategy  game\n"
        " 0 A.D. is a free game of\n"
        " ancient warfare.\n"
        " .\n"
        " It has:\n"
        "  * maps\n"
        "  * units with\n"
        "    many names\n"
        " and more\n"
        " .\n"
        " .\n"
        " Data files."
    ),
    italian="gioco di strategia\n 0 A.D. è un gioco\n gratuito.\n .\n Ha:\n .\n File di dati.",
    source="0ad (0.0.26-1)",
)
PLAIN = Entry("zsh", "contrib/shells", 7, "shell with lots of features")


def test_packages_are_joined_with_their_descriptions(tmp_path: Path) -> None:
    lists = write_lists(tmp_path, [PLAIN, ZERO_AD])
    first, second = read_packages(lists)
    assert (first.name, first.source, first.section, first.installed_kib) == ("0ad-data", "0ad", "games", 3218736)
    assert first.english == Description(
        "Real-time strategy game",
        (
            "0 A.D. is a free game of ancient warfare.",
            "It has:\n* maps\n* units with\nmany names\nand more",
            "Data files.",
        ),
    )
    assert first.translations == {
        "it": Description("gioco di strategia", ("0 A.D. è un gioco gratuito.", "Ha:", "File di dati."))
    }
    assert (second.name, second.source, second.section, second.translations) == ("zsh", "zsh", "shells", {})
    assert second.english.paragraphs == ()
    assert release_of(lists) == "Debian 12.99 of Mon, 02 Nov 2026 10:00:00 UTC"


def test_of_a_package_in_several_versions_the_first_counts(tmp_path: Path) -> None:
    other = Entry("zsh", "shells", 9, "another description")
    assert [package.installed_kib for package in read_packages(write_lists(tmp_path, [PLAIN, other]))] == [7]


def test_another_suite_is_not_read(tmp_path: Path) -> None:
    write_lists(tmp_path, [PLAIN])
    write_lists(tmp_path, [ZERO_AD], suite="bookworm-updates")
    assert [package.name for package in read_packages(tmp_path)] == ["zsh"]
    assert [package.name for package in read_packages(tmp_path, "bookworm-updates")] == ["0ad-data"]


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".xz", lzma.compress)])
def test_compressed_lists_are_read(tmp_path: Path, suffix: str, compress: type[bytes]) -> None:
    write_lists(tmp_path, [PLAIN, ZERO_AD])
    plain = read_packages(tmp_path)
    for path in tmp_path.glob("*_main_*"):
        path.with_name(path.name + suffix).write_bytes(compress(path.read_bytes()))
        path.unlink()
    assert read_packages(tmp_path) == plain


def lz4_frame(content: bytes) -> bytes:
    """A frame of one block that is stored as it is; Python has no LZ4 of its own."""
    descriptor = bytes([0x60, 0x70])  # version 1, independent blocks; at most 4 MiB each
    check = xxhash.xxh32_intdigest(descriptor) >> 8 & 0xFF
    block = (len(content) | 1 << 31).to_bytes(4, "little") + content
    return bytes.fromhex("04224d18") + descriptor + bytes([check]) + block + bytes(4)


@pytest.mark.skipif(not CAT_FILE.exists(), reason="needs apt's own reader of its lists")
def test_lists_as_apt_keeps_them_are_read(tmp_path: Path) -> None:
    write_lists(tmp_path, [PLAIN, ZERO_AD])
    plain = read_packages(tmp_path)
    for path in tmp_path.glob("*_main_*"):
        path.with_name(path.name + ".lz4").write_bytes(lz4_frame(path.read_bytes()))
        path.unlink()
    assert read_packages(tmp_path) == plain
    next(tmp_path.glob("*Translation-it.lz4")).write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"Translation-it.lz4 cannot be read"):
        read_packages(tmp_path)


def test_a_missing_list_is_named(tmp_path: Path) -> None:
    lists = write_lists(tmp_path, [PLAIN])
    next(lists.glob("*Translation-fr")).unlink()
    with pytest.raises(DataError, match=r"no file \*_dists_bookworm_main_i18n_Translation-fr"):
        read_packages(lists)


def test_stanzas_end_at_empty_lines_and_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "index"
    path.write_text("A: 1\nB: two: 2\n more\n\n\nA: 3")
    assert list(read_stanzas(path)) == [{"A": "1", "B": "two: 2\n more"}, {"A": "3"}]


def test_items_of_a_list_stand_on_their_own_with_the_words_that_follow() -> None:
    description = read_description("short\n Features:\n - first\n and its end\n - second\n   verbatim")
    assert description.text == "Features:\n- first and its end\n- second\nverbatim"


def test_families_join_versions_of_a_source(tmp_path: Path) -> None:
    sources = ("gcc-11", "gcc-12", "python3.11", "python", "boost1.74", "7zip", "9", "llvm-toolchain-14")
    entries = [Entry(f"p{n}", "devel", 1, f"text {n}", source=source) for n, source in enumerate(sources)]
    families = [package.family for package in read_packages(write_lists(tmp_path, entries))]
    assert families == ["gcc", "gcc", "python", "python", "boost", "zip", "9", "llvm-toolchain"]


def test_a_machine_without_apt_is_told_what_to_do(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "examples.debian.prepare", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PATH": ""}, timeout=60)
    assert done.returncode == 2
    assert "no apt-get on this machine" in done.stderr
    assert "--lists DIR" in done.stderr


def test_apt_brings_the_lists_of_a_mirror_and_leaves_the_system_as_it_is(tmp_path: Path) -> None:
    # A program of that name stands in for apt-get, whose own server would be needed else.
    program = tmp_path / "bin/apt-get"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > "$(dirname "$0")/words"\nexit ${FAIL:-0}\n')
    program.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        lists = fetch_lists(tmp_path / "apt", "http://mirror.example/debian", "trixie")
        words = (program.parent / "words").read_text().splitlines()
        patch.setenv("FAIL", "100")
        with pytest.raises(DataError, match="ended with code 100"):
            fetch_lists(tmp_path / "apt")
    assert lists == tmp_path / "apt/lists"
    assert (lists / "partial").is_dir()
    assert words[0] == "update"
    options = dict(word.split("=", 1) for word in words if "=" in word)
    inside = ("Dir::State::lists", "Dir::Cache", "Dir::Etc::sourcelist")
    assert all(Path(options[name]).is_relative_to(tmp_path) for name in inside)
    assert options["Acquire::Languages"] == "en,it,fr,de"
    assert (tmp_path / "apt/sources.list").read_text().endswith(" http://deb.debian.org/debian bookworm main\n")
