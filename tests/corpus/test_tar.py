"""Tars of strangers: read without harm, or refused by name."""

import gzip
import io
import random
import resource
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from scaletrain.corpus.reading import LARGEST_DOCUMENT_BYTES, Reading
from scaletrain.corpus.tar import read_tar
from scaletrain.errors import DataError


def member(name: str, content: bytes = b"text", kind: bytes = tarfile.REGTYPE, size: bytes | None = None) -> bytes:
    """A member with a valid checksum, whatever it claims."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(content)
    header = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    if size is not None:
        header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + content + bytes(-len(content) % 512)


def read(folder: Path, content: bytes) -> tuple[list[tuple[str, str]], Reading]:
    path, reading = folder / "a.tar", Reading()
    path.write_bytes(content)
    return list(read_tar(path, "text", reading)), reading


END = bytes(1024)


def test_names_are_labels_and_links_are_passed_by(tmp_path: Path) -> None:
    content = b"".join(
        (
            member("/etc/absolute.txt", b"one"),
            member("../../escape.txt", b"two"),
            member("link.txt", b"", tarfile.SYMTYPE),
            member("hard.txt", b"", tarfile.LNKTYPE),
            member("device.txt", b"", tarfile.CHRTYPE),
            member("folder.txt", b"", tarfile.DIRTYPE),
            member("key.pyd", b"cos\nsystem\n(S'touch pwned'\ntR."),
            member("key.txt", b"three"),
            member("key.txt", b"four, under a key that was there"),
            member("latin.txt", b"\xe9t\xe9"),
            member("._key.txt", b"of a Macintosh"),
            member("null.json", b'{"text": null}'),
        )
    )
    documents, reading = read(tmp_path, content + END)
    assert documents == [
        ("/etc/absolute", "one"),
        ("../../escape", "two"),
        ("key", "three"),
        ("key", "four, under a key that was there"),
    ]
    assert reading.skipped_documents == {"link or device in a tar": 3, "not UTF-8": 1, "null": 1} | {
        "file of a tar that is in no sample": 1
    }
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"] and not Path("pwned").exists()


HUGE = b"%011o\0" % 10**9
BEYOND = b"\x80" + (10**18).to_bytes(11)
NEGATIVE = b"\xff" * 12


@pytest.mark.parametrize("size", [HUGE, BEYOND, NEGATIVE], ids=["huge", "beyond", "negative"])
@pytest.mark.parametrize("kind", [b"0", b"S", b"x", b"g", b"L", b"7", b"Q"])
def test_false_sizes_are_refused_at_once(tmp_path: Path, size: bytes, kind: bytes) -> None:
    with pytest.raises(DataError, match=r"a\.tar.* at byte 1024[ .]"):
        read(tmp_path, member("a.txt") + member("b.txt", kind=kind, size=size) + member("c.txt") + END)


@pytest.mark.parametrize("record", [b"18 size=999999999\n", b"12 size=-512\n", b"22 GNU.sparse.size=99\n", b"9 path\n"])
def test_extended_headers_that_lie_do_no_harm(tmp_path: Path, record: bytes) -> None:
    content = member("a.txt") + member("x", record, b"x") + member("b.txt") + END
    try:
        documents, _ = read(tmp_path, content)
    except DataError as error:
        assert "a.tar" in str(error)
    else:
        assert documents[0] == ("a", "text") and len(documents) <= 2


TWELVE = b"".join(member(f"{number}.txt") for number in range(12))


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "ends at byte 0 without"),
        (b"not a tar" * 200, "no valid tar header at byte 0"),
        (member("a.txt")[:700], "ends at byte 700 without a tar's end mark"),
        (member("a.json", b"[1]") + END, "is not an object"),
        (member("a.txt.gz", b"") + END, r"member 'a\.txt\.gz' at byte 512 cannot be decompressed: it is empty"),
        (member("a.txt.gz", gzip.compress(b"text")[:-4]) + END, "at byte 512 cannot be decompressed"),
        (flipped(TWELVE, 10 * 1024) + END, "no valid tar header at byte 10240"),
        (TWELVE[:6144] + bytes(4096) + TWELVE[10240:] + END, "behind the end mark at byte 6144"),
        (TWELVE[: 5 * 1024], "ends at byte 5120 without a tar's end mark"),
        (TWELVE + END + TWELVE + END, "behind the end mark at byte 12288"),
    ],
    ids=["nothing", "junk", "cut", "json", "empty gz", "cut gz", "flipped bit", "zeros", "cut at a member", "joined"],
)
def test_damage_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=rf"a\.tar.*{message}"):
        read(tmp_path, content)


def test_a_compressed_bomb_is_left_out_in_bounded_memory(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=1) as zipped:
        for _ in range((LARGEST_DOCUMENT_BYTES >> 24) + 1):
            zipped.write(bytes(1 << 24))
    (tmp_path / "a.tar").write_bytes(member("a.txt.gz", stream.getvalue()) + member("b.txt") + END)
    program = (
        "import resource, sys; from pathlib import Path; limit = int(sys.argv[2])\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "from scaletrain.corpus.tar import read_tar; from scaletrain.corpus.reading import Reading\n"
        "reading = Reading()\n"
        "print(list(read_tar(Path(sys.argv[1]), 'text', reading)), dict(reading.skipped_documents))"
    )
    limit = 4 * LARGEST_DOCUMENT_BYTES
    command = [sys.executable, "-c", program, str(tmp_path / "a.tar"), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == "[('b', 'text')] {'larger than 64 MiB': 1}\n", done.stderr
    assert resource.getrlimit(resource.RLIMIT_AS)[0] != limit


MUTATIONS: list[Callable[[random.Random, bytearray, int], None]] = [
    lambda source, tar, header: tar.__setitem__(header + source.randrange(512), source.randrange(256)),
    lambda source, tar, header: tar.__setitem__(header + 156, source.choice(b"xgLKSV1234567\0")),
    lambda source, tar, header: tar.__setitem__(
        slice(header + 124, header + 136),
        source.choice([b"%011o\0" % source.randrange(8**11), b"\x80" + source.randbytes(11), b"-0000000001\0"]),
    ),
]


def test_damaged_headers_are_refused_or_read_but_never_raise_otherwise(tmp_path: Path) -> None:
    source = random.Random(5)
    with tarfile.open(tmp_path / "good.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for number in range(4):
            info = tarfile.TarInfo(f"{'é' * 90 * (number % 2)}{number}.txt")
            info.size, info.mtime = 600, 1.5
            tar.addfile(info, io.BytesIO(b"t" * 600))
    good = (tmp_path / "good.tar").read_bytes()
    refused = 0
    for _ in range(400):
        damaged = bytearray(good)
        header = 512 * source.randrange(12)
        source.choice(MUTATIONS)(source, damaged, header)
        summed = damaged[header : header + 148] + b" " * 8 + damaged[header + 156 : header + 512]
        damaged[header + 148 : header + 156] = b"%06o\0 " % sum(summed)
        try:
            read(tmp_path, bytes(damaged))
        except DataError:
            refused += 1
    assert 20 < refused < 380
