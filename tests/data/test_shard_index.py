import io
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaletrain.data.manifest import Content
from scaletrain.data.shard_index import ShardIndex, index_path, index_shard
from scaletrain.errors import DataError


def make_tar(path: Path, members: list[tuple[str, bytes]], **header: Any) -> Path:
    with tarfile.open(path, "w", format=header.pop("format", tarfile.USTAR_FORMAT)) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for field, value in header.items():
                setattr(info, field, value)
            tar.addfile(info, io.BytesIO(content))
    return path


def stored(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


GOOD = stored(np.arange(3, dtype=np.uint16))
FACTS = b'{"bytes": 7}'


def make_shard(path: Path, keys: tuple[str, ...] = ("d/0", "d/1", "é")) -> tuple[Path, list[np.ndarray]]:
    tokens = [np.arange(size, dtype=np.uint32) + 10 for size in (3, 700, 1)]
    members = [
        member
        for key, array in zip(keys, tokens, strict=True)
        for member in [(f"{key}.json", FACTS), (f"{key}.tokens.npy", stored(array)), (f"{key}.x", b"?")]
    ]
    return make_tar(path, members, mtime=1.5, format=tarfile.PAX_FORMAT), tokens


def test_an_index_says_where_the_documents_are(tmp_path: Path) -> None:
    path, tokens = make_shard(tmp_path / "a.tar", ("d/" + "long" * 40, "d/1", "é"))
    index = index_shard(path)
    assert index.dtype == "uint32" and index.n_tokens.tolist() == [3, 700, 1] and index.n_bytes.tolist() == [7] * 3
    assert index.sizes.tolist() == [12, 2800, 4] and index.content == Content()
    content = path.read_bytes()
    for array, offset, size in zip(tokens, index.offsets.tolist(), index.sizes.tolist(), strict=True):
        assert np.frombuffer(content[offset : offset + size], np.uint32).tolist() == array.tolist()


def test_an_index_is_read_from_a_path_and_from_bytes_and_its_keys_when_asked(tmp_path: Path) -> None:
    path, _ = make_shard(tmp_path / "a.tar")
    made = index_shard(path)
    made.write(index_path(path))
    content = index_path(path).read_bytes()
    for read in (ShardIndex.read(index_path(path)), ShardIndex.read(io.BytesIO(content), "s3://b/a.index.npz")):
        assert read.keys is None and (read.size, read.checksum, read.edges) == (made.size, made.checksum, made.edges)
        for column in ("offsets", "sizes", "n_tokens", "n_bytes"):
            assert getattr(read, column).tolist() == getattr(made, column).tolist()
    assert ShardIndex.read_keys(index_path(path)) == ShardIndex.read_keys(io.BytesIO(content)) == ["d/0", "d/1", "é"]
    with pytest.raises(ValueError, match="with the keys"):
        ShardIndex.read(index_path(path)).write(tmp_path / "again.npz")


def make_valued(path: Path, *values: str) -> Path:
    facts = [b'{"bytes": 7, "values": %s}' % value.encode() for value in values]
    members = [[(f"{key}.json", fact), (f"{key}.tokens.npy", GOOD)] for key, fact in enumerate(facts)]
    return make_tar(path, [member for sample in members for member in sample])


def test_values_of_documents_are_kept_exactly(tmp_path: Path) -> None:
    path = make_valued(tmp_path / "a.tar", "[1, 0.1]", "[-3, 1e300]")
    made = index_shard(path, n_values=2)
    made.write(index_path(path))
    read = ShardIndex.read(index_path(path))
    assert read.values is not None and read.values.dtype == np.float64
    assert read.values.tolist() == [[1, 0.1], [-3, 1e300]]
    without = index_shard(path)
    without.write(index_path(path))
    assert without.values is None and ShardIndex.read(index_path(path)).values is None


@pytest.mark.parametrize("values", ["[1]", "[1, 2, 3]", "[1, NaN]", "[1, Infinity]", '[1, "2"]', "[1, true]", "7"])
def test_values_that_are_not_as_many_finite_numbers_are_refused(tmp_path: Path, values: str) -> None:
    path = make_valued(tmp_path / "a.tar", "[1, 2]", values)
    with pytest.raises(DataError, match=r"1\.json must be.*'values' are 2 finite numbers"):
        index_shard(path, n_values=2)


def test_an_index_of_version_1_is_read_and_its_keys_come_from_the_tar(tmp_path: Path) -> None:
    path, _ = make_shard(tmp_path / "a.tar")
    made = index_shard(path)
    columns = {name: getattr(made, name) for name in ("offsets", "n_tokens", "n_bytes", "size", "checksum", "edges")}
    np.savez(index_path(path), version=1, dtype="uint32", **columns)
    read = ShardIndex.read(index_path(path))
    assert read.sizes.tolist() == made.sizes.tolist() and read.content == Content()
    with path.open("rb") as stream:
        assert ShardIndex.read_keys(index_path(path), descriptor=stream.fileno()) == ["d/0", "d/1", "é"]
    with pytest.raises(DataError, match=r"a\.index\.npz is of version 1, which has no keys.*make_shards"):
        ShardIndex.read_keys(index_path(path))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.txt", b"x")], "holds no document"),
        ([("a.tokens.npy", GOOD)], "no json before its tokens"),
        ([("a.json", b"{}"), ("a.tokens.npy", GOOD)], "length of the text"),
        ([("a.json", b'{"bytes": -1}'), ("a.tokens.npy", GOOD)], "length of the text"),
        ([("a.json", b"[" * 100_000), ("a.tokens.npy", GOOD)], "length of the text"),
        ([("a.json", b'{"bytes": true}'), ("a.tokens.npy", GOOD)], "length of the text"),
        ([("a.json", b'{"bytes": 1' + b"0" * 30 + b"}"), ("a.tokens.npy", GOOD)], "below 1,099,511,627,776"),
        ([("a.json", b'{"bytes": 4611686018427387904}'), ("a.tokens.npy", GOOD)], "length of the text"),
        ([("a.json", FACTS), ("a.tokens.npy", stored(np.zeros((2, 2), np.uint16)))], "one dimension"),
        ([("a.json", FACTS), ("a.tokens.npy", stored(np.zeros(2, np.int64)))], "one dimension"),
        ([("a.json", FACTS), ("a.tokens.npy", stored(np.array([{}], dtype=object)))], "one dimension"),
        ([("a.json", FACTS), ("a.tokens.npy", GOOD[:-1])], "one dimension"),
        ([("a.json", FACTS), ("a.tokens.npy", b"no array")], "not an array of numpy"),
        ([("a.json", FACTS), ("a.tokens.npy", GOOD), ("a.tokens.npy", GOOD)], "holds document 'a' twice"),
        (
            [
                *[("a.json", FACTS), ("a.tokens.npy", GOOD)],
                *[("b.json", FACTS), ("b.tokens.npy", stored(np.zeros(2, np.uint32)))],
            ],
            "mixes tokens of types uint16, uint32",
        ),
    ],
)
def test_documents_that_cannot_be_understood_are_named(
    tmp_path: Path, members: list[tuple[str, bytes]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        index_shard(make_tar(tmp_path / "a.tar", members))


def test_links_are_refused_in_shards_of_our_own(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar", [("a.tokens.npy", b"")], type=tarfile.SYMTYPE, linkname="/etc/passwd")
    with pytest.raises(DataError, match=r"'a\.tokens\.npy' is of type '2'"):
        index_shard(path)


@pytest.fixture(scope="module")
def index_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path, _ = make_shard(tmp_path_factory.mktemp("index") / "a.tar")
    index_shard(path).write(index_path(path))
    return index_path(path).read_bytes()


def zipped(
    arrays: dict[str, Any],
    compression: int = zipfile.ZIP_STORED,
    claim: str = "",
    copies: int = 0,
    comment: bytes = b"",
) -> bytes:
    """An index as somebody else may have put it together."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, array in arrays.items():
            content = stored(np.asarray(array))
            if name == "offsets" and claim:
                content = content.replace(b"(3,), }".ljust(len(claim) + 3), claim.encode() + b", }")
            archive.writestr(f"{name}.npy", content)
        for number in range(copies):
            archive.writestr(f"{number}.npy", b"")
        archive.comment = comment
    return stream.getvalue()


def claims_more(content: bytes) -> bytes:
    """The list of parts says that the first has 2 GiB."""
    place = content.index(b"PK\1\2")
    return content[: place + 20] + struct.pack("<II", 2**31 - 1, 2**31 - 1) + content[place + 28 :]


def encrypted(content: bytes) -> bytes:
    place = content.index(b"PK\1\2")
    return content[: place + 8] + b"\1" + content[place + 9 :]


BOMB = np.zeros(8_000_000, np.int8)


@pytest.mark.parametrize(
    ("forge", "message"),
    [
        (lambda arrays: zipped({**arrays, "version": BOMB}, zipfile.ZIP_DEFLATED), "it is compressed"),
        (lambda arrays: zipped({**arrays, "offsets": BOMB}, zipfile.ZIP_LZMA), "it is compressed"),
        (lambda arrays: encrypted(zipped(arrays)), "compressed or encrypted"),
        (lambda arrays: claims_more(zipped(arrays)), "claims more than it holds"),
        (lambda arrays: zipped(arrays, claim="(999999999999,)"), "offsets has shape"),
        (lambda arrays: zipped(arrays, claim="(-1,)"), "offsets has shape"),
        (lambda arrays: zipped(arrays, copies=100), "no zip file with a short list"),
        (lambda arrays: zipped(arrays, comment=b"x"), "no zip file with a short list"),
        (lambda arrays: zipped({**arrays, "offsets": np.array([{}], dtype=object)}), "offsets has"),
        (lambda arrays: zipped({**arrays, "offsets": arrays["offsets"].astype(np.uint64)}), "not one dimension of int"),
        (lambda arrays: zipped({**arrays, "offsets": arrays["offsets"].reshape(1, 3)}), "not one dimension of int64"),
        (lambda arrays: zipped({**arrays, "n_bytes": arrays["n_bytes"][:2]}), "columns differ in length"),
        (lambda arrays: zipped({**arrays, "values": np.zeros(3)}), r"values has shape \(3,\) and type float64"),
        (lambda arrays: zipped({**arrays, "values": np.zeros((2, 1))}), "not a row for each document"),
        (lambda arrays: zipped({**arrays, "values": np.zeros((3, 1), np.float32)}), "type float32"),
        (lambda arrays: zipped({**arrays, "checksum": "x" * 10_000}), "checksum has shape"),
        (lambda arrays: zipped({**arrays, "size": "x"}), "its size is 'x'"),
        (lambda arrays: zipped({**arrays, "dtype": "O"}), "its dtype 'O'"),
        (lambda arrays: zipped({**arrays, "version": 3}), "its version is 3"),
        (lambda arrays: zipped({**arrays, "key_ends": arrays["key_ends"] + 1}), "keys are not those"),
        (lambda arrays: zipped({**arrays, "key_ends": arrays["key_ends"] - 9}), "keys are not those"),
    ],
)
def test_an_index_of_a_stranger_takes_no_more_memory_than_its_file(
    index_bytes: bytes, forge: Callable[[dict[str, Any]], bytes], message: str
) -> None:
    with np.load(io.BytesIO(index_bytes)) as archive:
        forged = forge(dict(archive))
    tracemalloc.start()
    with pytest.raises(DataError, match=rf"The index forged cannot be read: .*{message}"):
        for read in (ShardIndex.read, ShardIndex.read_keys):
            read(io.BytesIO(forged), "forged")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_keys_of_an_index_of_version_1_that_is_another_shards_are_refused(tmp_path: Path) -> None:
    path, _ = make_shard(tmp_path / "a.tar")
    made = index_shard(path)
    np.savez(index_path(path), version=1, offsets=made.offsets)
    empty = make_tar(tmp_path / "empty.tar", [])
    with empty.open("rb") as stream, pytest.raises(DataError, match="where its shard has no document"):
        ShardIndex.read_keys(index_path(path), descriptor=stream.fileno())


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_index_is_told(index_bytes: bytes, data: st.DataObject) -> None:
    content = bytearray(index_bytes)
    place = data.draw(st.integers(0, len(content) - 1))
    new = data.draw(st.binary(min_size=1, max_size=8))
    content[place : place + len(new)] = new
    for read in (ShardIndex.read, ShardIndex.read_keys):
        try:
            read(io.BytesIO(bytes(content)), "damaged")
        except DataError as error:
            assert "The index damaged" in str(error)
