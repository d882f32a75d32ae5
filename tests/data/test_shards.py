import io
import os
import pickle
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scaletrain.data.manifest import Manifest
from scaletrain.data.shard_index import ShardIndex, index_path, index_shard
from scaletrain.data.shards import ShardReader
from scaletrain.errors import DataError


def documents_by_tarfile(path: Path) -> list[np.ndarray]:
    with tarfile.open(path) as tar:
        members = [member for member in tar if member.name.endswith(".tokens.npy")]
        return [np.load(io.BytesIO(tar.extractfile(member).read())) for member in members]


def test_ranges_of_tokens_are_those_of_the_tar(corpus: Manifest) -> None:
    reader = ShardReader.of_split(corpus, "train")
    reader.check()
    for number, shard in enumerate(corpus.split("train")):
        expected = documents_by_tarfile(corpus.folder / shard.path)
        assert reader.token_counts(number).tolist() == [len(tokens) for tokens in expected]
        assert int(reader.byte_counts(number).sum()) == shard.bytes
        for document, tokens in enumerate(expected):
            assert tokens[-1] == corpus.tokenizer.eos_id
            assert reader.tokens(number, document, 0, len(tokens)).tolist() == tokens.tolist()
            assert reader.tokens(number, document, 1, len(tokens) - 1).tolist() == tokens[1:-1].tolist()
    with pytest.raises(IndexError, match="has no tokens"):
        reader.tokens(0, 0, 0, 10**6)


def test_open_files_are_bounded_and_travel_over_forks_and_pickles(corpus: Manifest) -> None:
    shards = corpus.split("train")
    reader = ShardReader(corpus.folder, shards, corpus.token_dtype, max_open=2)
    before = len(os.listdir("/proc/self/fd"))
    first = [reader.tokens(shard, 0, 0, 2).tolist() for shard in range(len(shards))]
    assert len(shards) > 3 and len(os.listdir("/proc/self/fd")) <= before + 2
    if (child := os.fork()) == 0:
        same = [reader.tokens(shard, 0, 0, 2).tolist() for shard in range(len(shards))] == first
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
    copy = pickle.loads(pickle.dumps(reader))
    assert [copy.tokens(shard, 0, 0, 2).tolist() for shard in range(len(shards))] == first


def test_a_shard_cut_after_it_was_opened_is_reported(build_small: Any, tmp_path: Path) -> None:
    manifest = build_small(tmp_path)
    reader = ShardReader.of_split(manifest, "train")
    last = len(reader.token_counts(0)) - 1
    os.truncate(tmp_path / manifest.splits["train"][0].path, 1024)
    with pytest.raises(DataError, match="is truncated"):
        reader.tokens(0, last, 0, 2)


def test_a_truncated_shard_is_refused(build_small: Any, tmp_path: Path) -> None:
    manifest = build_small(tmp_path)
    shard = manifest.splits["train"][0]
    os.truncate(tmp_path / shard.path, shard.size // 2)
    with pytest.raises(DataError, match=rf"{shard.path} is truncated: it has {shard.size // 2} bytes.*make_shards"):
        ShardReader.of_split(manifest, "train").tokens(0, 0, 0, 1)
    with pytest.raises(DataError, match=r"is truncated.*make_shards"):
        index_shard(tmp_path / shard.path)


def test_the_index_of_another_shard_is_refused(build_small: Any, tmp_path: Path) -> None:
    manifest = build_small(tmp_path)
    first, second = (tmp_path / manifest.splits["train"][number].path for number in (0, 1))
    shutil.copy(index_path(second), index_path(first))
    with pytest.raises(DataError, match=rf"{index_path(first).name} is not the index of {first.name}.*says"):
        ShardReader.of_split(manifest, "train").check()
    index_path(first).unlink()
    with pytest.raises(DataError, match="is missing"):
        ShardReader.of_split(manifest, "train").check()
    index_path(first).write_bytes(index_path(second).read_bytes()[:100])
    with pytest.raises(DataError, match=r"index .* cannot be read"):
        ShardReader.of_split(manifest, "train").check()


def test_another_tar_of_the_same_size_is_refused(build_small: Any, tmp_path: Path) -> None:
    manifest = build_small(tmp_path)
    path = tmp_path / manifest.splits["train"][0].path
    content = bytearray(path.read_bytes())
    offset = int(ShardIndex.read(index_path(path)).offsets[0])
    content[offset] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"is not the one that .* was made from"):
        ShardReader.of_split(manifest, "train").check()
    content[offset] ^= 1
    path.write_bytes(content)
    ShardReader.of_split(manifest, "train").check()


def test_an_index_that_points_outside_is_refused(build_small: Any, tmp_path: Path) -> None:
    manifest = build_small(tmp_path)
    path = index_path(tmp_path / manifest.splits["train"][0].path)
    with np.load(path) as stored:
        columns = dict(stored)
    columns["offsets"] = columns["offsets"].copy()
    columns["offsets"][3] = 2**60
    np.savez(path, **columns)
    with pytest.raises(DataError, match="names places outside"):
        ShardReader.of_split(manifest, "train").check()


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


def test_tars_made_elsewhere_are_indexed_over_their_extended_headers(tmp_path: Path) -> None:
    tokens = [np.arange(size, dtype=np.uint32) + 10 for size in (3, 700, 1)]
    members = [
        member
        for key, array in enumerate(tokens)
        for member in [(f"d/{key}.json", b'{"bytes": 7}'), (f"d/{key}.tokens.npy", stored(array)), (f"d/{key}.x", b"?")]
    ]
    path = make_tar(tmp_path / "a.tar", members, mtime=1.5, format=tarfile.PAX_FORMAT)
    index = index_shard(path)
    assert index.dtype == "uint32" and index.n_tokens.tolist() == [3, 700, 1] and index.n_bytes.tolist() == [7] * 3
    content = path.read_bytes()
    for array, offset in zip(tokens, index.offsets.tolist(), strict=True):
        assert np.frombuffer(content, np.uint32, len(array), offset).tolist() == array.tolist()
    index.write(index_path(path))
    assert ShardIndex.read(index_path(path)).checksum == index.checksum


GOOD = stored(np.arange(3, dtype=np.uint16))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.txt", b"x")], "holds no document"),
        ([("a.tokens.npy", GOOD)], "no json before its tokens"),
        ([("a.json", b"{}"), ("a.tokens.npy", GOOD)], "length of the text"),
        ([("a.json", b'{"bytes": -1}'), ("a.tokens.npy", GOOD)], "length of the text"),
        ([("a.json", b'{"bytes": 1}'), ("a.tokens.npy", stored(np.zeros((2, 2), np.uint16)))], "one dimension"),
        ([("a.json", b'{"bytes": 1}'), ("a.tokens.npy", stored(np.zeros(2, np.int64)))], "one dimension"),
        ([("a.json", b'{"bytes": 1}'), ("a.tokens.npy", GOOD[:-1])], "one dimension"),
        ([("a.json", b'{"bytes": 1}'), ("a.tokens.npy", b"no array")], "not an array of numpy"),
        (
            [
                *[("a.json", b'{"bytes": 1}'), ("a.tokens.npy", GOOD)],
                *[("b.json", b'{"bytes": 1}'), ("b.tokens.npy", stored(np.zeros(2, np.uint32)))],
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


def test_headers_are_not_believed(tmp_path: Path) -> None:
    members = [("a.json", b'{"bytes": 1}'), ("a.tokens.npy", GOOD)]
    path = make_tar(tmp_path / "a.tar", members)
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="no valid tar header at byte 0"):
        index_shard(path)
    with pytest.raises(DataError, match="of type b'2'"):
        index_shard(make_tar(path, [("a.tokens.npy", b"")], type=tarfile.SYMTYPE, linkname="/etc/passwd"))
    with pytest.raises(DataError, match="over 100 bytes"):
        index_shard(make_tar(path, [("é" * 200 + ".tokens.npy", GOOD)], format=tarfile.PAX_FORMAT))
    # A size that leads beyond the file's end, with a header that is otherwise in order.
    info = tarfile.TarInfo("a.tokens.npy")
    info.size = 8**11 - 1
    path.write_bytes(info.tobuf(tarfile.USTAR_FORMAT) + bytes(1024))
    with pytest.raises(DataError, match="is truncated: the member at byte 0 ends at byte"):
        index_shard(path)
