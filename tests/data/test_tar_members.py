import io
import os
import subprocess
import tarfile
import tempfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from webdataset.tariterators import base_plus_ext

from scaletrain.data.tar_members import Member, split_name, walk_members
from scaletrain.errors import DataError

BLOCK = 512


def walk(content: bytes) -> list[Member]:
    with tempfile.TemporaryFile() as stream:
        stream.write(content)
        stream.flush()
        return list(walk_members(stream.fileno(), len(content), "a.tar"))


def by_tarfile(content: bytes) -> list[tuple[str, int, int]]:
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return [(member.name, member.offset_data, member.size) for member in tar if member.isreg()]


def files(members: list[Member]) -> list[tuple[str, int, int]]:
    return [(member.name, member.offset, member.size) for member in members if member.kind == "0"]


def header(name: str = "a.txt", kind: bytes = b"0", size: int = 0, **fields: object) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.USTAR_FORMAT)


def patched(block: bytes, place: int, content: bytes) -> bytes:
    """A header with other bytes at a place, and the sum that they ask for."""
    changed = bytearray(block)
    changed[place : place + len(content)] = content
    changed[148:156] = b" " * 8
    changed[148:156] = b"%06o\0 " % sum(changed)
    return bytes(changed)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % BLOCK)


END = bytes(2 * BLOCK)
NAMES = st.lists(
    st.text("abü.1/λ", min_size=1, max_size=150).filter(lambda name: name.strip("/.") and name[-1] != "/"), max_size=6
)


@settings(max_examples=40, deadline=None)
@given(NAMES, st.data(), st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
def test_members_are_those_that_tarfile_finds(names: list[str], data: st.DataObject, layout: int) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=layout) as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.type = data.draw(st.sampled_from([tarfile.REGTYPE] * 4 + [tarfile.DIRTYPE, tarfile.SYMTYPE]))
            info.mtime = data.draw(st.sampled_from([0, 1.5, 2e11]))
            info.size = data.draw(st.sampled_from([0, 1, 511, 512, 513, 40_000, 300_000])) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(bytes(info.size)))
    assert files(walk(stream.getvalue())) == by_tarfile(stream.getvalue())


@pytest.mark.parametrize("layout", ["gnu", "oldgnu", "pax", "ustar", "v7"])
def test_tars_of_gnu_tar_are_walked_over(tmp_path: Path, layout: str) -> None:
    names = ["a.txt", "b/c/d.json", "ä.txt"]
    if layout in ("gnu", "oldgnu", "pax"):
        names.append("long" * 50 + ".txt")
    if layout != "v7":
        names.append("x" * 90 + "/" + "y" * 40 + ".txt")  # in ustar in two fields
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name * 100)
    (tmp_path / "link.txt").symlink_to("a.txt")
    os.link(tmp_path / "a.txt", tmp_path / "z.txt")
    path = tmp_path / "out.tar"
    command = ["tar", "-c", f"--format={layout}", "-f", str(path), "-C", str(tmp_path), "--exclude=out.tar", "."]
    subprocess.run(command, check=True, timeout=30)
    content = path.read_bytes()
    members = walk(content)
    assert files(members) == by_tarfile(content)
    texts = {name.removeprefix("./"): content[offset : offset + size].decode() for name, offset, size in files(members)}
    assert {name: text for name, text in texts.items() if name not in ("a.txt", "z.txt")} == {
        name: name * 100 for name in names if name != "a.txt"
    }
    assert sorted(member.kind for member in members if member.kind not in "05") == ["1", "2"]


def test_sizes_in_base_256_and_signed_sums_are_understood() -> None:
    block = patched(header(), 124, b"\x80" + (700).to_bytes(11, "big"))
    assert files(walk(block + bytes(1024) + END)) == [("a.txt", BLOCK, 700)]
    block = bytearray(header("ä.txt"))
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + 256 + sum(block[156:]) - 2 * 256)
    assert files(walk(bytes(block) + END)) == [("ä.txt", BLOCK, 0)]


def test_names_may_lead_anywhere_since_nothing_is_unpacked() -> None:
    content = (
        header("/etc/passwd.txt") + header("../../up.txt") + header("link.txt", b"2", linkname="/etc/shadow") + END
    )
    assert [(member.name, member.kind) for member in walk(content)] == [
        ("/etc/passwd.txt", "0"),
        ("../../up.txt", "0"),
        ("link.txt", "2"),
    ]


def pax(*records: tuple[bytes, bytes], kind: bytes = b"x") -> bytes:
    content = b""
    for key, value in records:
        length = len(key) + len(value) + 3
        length += len(str(length))
        length += len(str(length)) - len(str(length - 1)) if len(str(length)) != len(str(length - 1)) else 0
        content += b"%d %s=%s\n" % (length, key, value)
    return header("pax", kind, len(content)) + padded(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is truncated: it ends at byte 0"),
        (header(size=1), "is truncated: the member at byte 0 ends at byte 513"),
        (header(size=8**11 - 1) + END, "is truncated"),
        (patched(header(), 124, b"\x80" + b"\xff" * 11) + END, "is truncated"),
        (patched(header(), 124, b"\xff" * 12) + END, "no valid tar header at byte 0"),
        (patched(header(), 124, b"-0000000100\0") + END, "no valid tar header at byte 0"),
        (header() + b"x" * BLOCK + END, "no valid tar header at byte 512"),
        (b"\x1f\x8b" + bytes(1000), r"is compressed \(gzip\)"),
        (b"\x28\xb5\x2f\xfd" + bytes(100), r"is compressed \(zstd\)"),
        (header() + b"BZh", "is truncated: it ends at byte 515"),
        (header() + END + header() + END, "goes on behind the end mark at byte 512"),
        (header() + END + bytes(1 << 20) + b"x", "goes on behind the end mark at byte 512"),
        (patched(header("d/", size=600), 156, b"\0") + bytes(1024) + END, r"of type '\\x00' and claims 600 bytes"),
        (pax((b"path", b"d/")) + patched(header(size=6), 156, b"\0") + bytes(512) + END, r"'\\x00' and claims 6 bytes"),
        (pax((b"path", b"d")) + patched(header("d/", size=6), 156, b"\0") + bytes(512) + END, "and claims 6 bytes"),
        (header(kind=b"5", size=600) + bytes(1024) + END, "is of type '5' and claims 600 bytes"),
        (header(kind=b"1", size=10**6) + bytes(10**6) + END, "is of type '1' and claims"),
        (header(kind=b"S") + END, "stored with holes"),
        (pax((b"GNU.sparse.major", b"1")) + header() + END, "stored with holes"),
        (pax((b"size", b"1000000000")) + header() + END, "is truncated"),
        (pax((b"size", b"-5")) + header() + END, "claims a size of b'-5'"),
        (pax((b"path", b"")) + header() + END, "a name of 0 bytes"),
        (pax((b"path", b"x" * 5000)) + header() + END, "a name of 5000 bytes"),
        (pax((b"path", b"x"), kind=b"g") + header() + END, "gives all members one path"),
        (pax((b"path", b"x")) + pax((b"path", b"y")) + header() + END, "given two names"),
        (pax((b"path", b"x")) + END, "no member follows the extended header"),
        (header("pax", b"x", 12) + padded(b"99 path=abc\n") + header() + END, "extended header at byte 0 is damaged"),
        (header("pax", b"x", 2 << 20) + bytes(2 << 20) + END, "extended header at byte 0 claims 2097152 bytes"),
    ],
)
def test_what_contradicts_itself_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        walk(content)


def test_keys_and_fields_are_those_of_webdataset() -> None:
    for name in (
        "a.txt",
        "d/a.tokens.npy",
        "./a.b.c",
        "d.x/a.txt",
        "d/e/ä.JSON",
        "a",
        "d.x/a",
        "/r/a.txt",
        "__m__.txt",
    ):
        key, field = base_plus_ext(name)
        assert split_name(name) == (None if key is None else (key, field.lower())), name
    for name in ("__meta__", "__meta__/a.txt", "__a.b__", ".hidden", "d/.hidden.txt"):
        assert split_name(name) is None
    assert base_plus_ext("d/.txt") == ("d/", "txt") and split_name("d/.txt") is None


def intact_tar() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for number, size in enumerate((0, 3, 700)):
            info = tarfile.TarInfo("n" * (60 * number) + f"{number}.txt")
            info.size, info.mtime = size, 0.5
            tar.addfile(info, io.BytesIO(bytes(size)))
    return stream.getvalue()


INTACT = intact_tar()


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, len(INTACT) - 1), st.binary(min_size=1, max_size=12)), min_size=1, max_size=4),
    st.integers(0, len(INTACT)),
    st.booleans(),
)
def test_damage_is_told_and_costs_no_memory(changes: list[tuple[int, bytes]], length: int, mend_sums: bool) -> None:
    content = bytearray(INTACT)
    for place, new in changes:
        content[place : place + len(new)] = new[: len(content) - place]
        start = place - place % BLOCK
        if mend_sums:  # so that what comes behind the check of the sum is reached
            content[start : start + BLOCK] = patched(bytes(content[start : start + BLOCK]), 0, b"")
    tracemalloc.start()
    try:
        members = walk(bytes(content[: length or len(content)]))
    except DataError:
        members = []
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 8 << 20
    assert all(0 <= member.offset <= member.offset + member.size <= len(content) for member in members)
