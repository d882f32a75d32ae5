import dataclasses
import io
import os
import pickle
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scaletrain.data.manifest import Content, Manifest, ShardEntry
from scaletrain.data.shard_index import ShardIndex, index_path, index_shard
from scaletrain.data.shards import ShardReader
from scaletrain.errors import BadShardError, DataError
from scaletrain.storage.storage import Storage


def documents_by_tarfile(path: Path) -> list[np.ndarray]:
    with tarfile.open(path) as tar:
        members = [member for member in tar if member.name.endswith(".tokens.npy")]
        return [np.load(io.BytesIO(tar.extractfile(member).read())) for member in members]


def test_ranges_of_tokens_are_those_of_the_tar(corpus: Manifest) -> None:
    reader = ShardReader(corpus, "train")
    reader.check()
    for number, shard in enumerate(corpus.split("train")):
        expected = documents_by_tarfile(Path(corpus.locate(shard.path)))
        assert reader.token_counts(number).tolist() == [len(tokens) for tokens in expected]
        for document, tokens in enumerate(expected):
            assert tokens[-1] == corpus.tokenizer.eos_id
            assert reader.tokens(number, document, 0, len(tokens)).tolist() == tokens.tolist()
            assert reader.tokens(number, document, 1, len(tokens) - 1).tolist() == tokens[1:-1].tolist()
    with pytest.raises(IndexError, match="has no tokens"):
        reader.tokens(0, 0, 0, 10**6)


def test_open_files_are_bounded_and_travel_over_forks_and_pickles(corpus: Manifest) -> None:
    shards = corpus.split("train")
    reader = ShardReader(corpus, "train", max_open=2)
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
    reader = ShardReader(manifest, "train")
    last = len(reader.token_counts(0)) - 1
    os.truncate(tmp_path / manifest.splits["train"][0].path, 1024)
    with pytest.raises(DataError, match="is truncated"):
        reader.tokens(0, last, 0, 2)


def test_a_truncated_shard_is_refused(build_small: Any, tmp_path: Path) -> None:
    manifest = build_small(tmp_path)
    shard = manifest.splits["train"][0]
    os.truncate(tmp_path / shard.path, shard.size // 2)
    with pytest.raises(DataError, match=rf"{shard.path} is truncated: it has {shard.size // 2} bytes.*make_shards"):
        ShardReader(manifest, "train").tokens(0, 0, 0, 1)
    with pytest.raises(DataError, match=r"is truncated.*Copy"):
        index_shard(tmp_path / shard.path)


def test_the_index_of_another_shard_is_refused(build_small: Any, tmp_path: Path) -> None:
    manifest = build_small(tmp_path)
    first, second = (tmp_path / manifest.splits["train"][number].path for number in (0, 1))
    shutil.copy(index_path(second), index_path(first))
    with pytest.raises(DataError, match=rf"{index_path(first).name} is not the index of {first.name}.*says"):
        ShardReader(manifest, "train").check()
    index_path(first).unlink()
    with pytest.raises(DataError, match=r"cannot be read: No such file.*make_shards"):
        ShardReader(manifest, "train").check()
    index_path(first).write_bytes(index_path(second).read_bytes()[:100])
    with pytest.raises(DataError, match=r"index .* cannot be read"):
        ShardReader(manifest, "train").check()


def test_another_tar_of_the_same_size_is_refused(build_small: Any, tmp_path: Path) -> None:
    manifest = build_small(tmp_path)
    path = tmp_path / manifest.splits["train"][0].path
    content = bytearray(path.read_bytes())
    offset = int(ShardIndex.read(index_path(path)).offsets[0])
    content[offset] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"is not the one that .* was made from"):
        ShardReader(manifest, "train").check()
    content[offset] ^= 1
    path.write_bytes(content)
    ShardReader(manifest, "train").check()


def test_an_index_that_points_outside_is_refused(build_small: Any, tmp_path: Path) -> None:
    manifest = build_small(tmp_path)
    path = index_path(tmp_path / manifest.splits["train"][0].path)
    with np.load(path) as stored:
        columns = dict(stored)
    columns["offsets"] = columns["offsets"].copy()
    columns["offsets"][3] = 2**60
    np.savez(path, **columns)
    with pytest.raises(DataError, match="names places outside"):
        ShardReader(manifest, "train").check()


def forged(manifest: Manifest, content: Content, **columns: tuple[int, int]) -> ShardReader:
    """A corpus of one shard, in whose index the last document has other numbers; the manifest goes along with them."""
    entry = manifest.splits["train"][0]
    path = Path(manifest.locate(entry.path))
    index = dataclasses.replace(index_shard(path), content=content)
    for name, (document, number) in columns.items():
        column = getattr(index, name).copy()
        column[document] = number
        index = dataclasses.replace(index, **{name: column})
    index.write(index_path(path))
    sums = {
        "tokens": sum(index.n_tokens.tolist()),
        "bytes": sum(index.n_bytes.tolist()),
        "longest": int(index.n_tokens.max()),
    }
    same = ShardEntry.model_construct(**{**dict(entry), **sums})
    return ShardReader(manifest.model_copy(update={"content": content, "splits": {"train": (same,)}}), "train")


TXT, GZIP, NPY = Content(field="txt"), Content(field="txt.gz"), Content(field="npy")


def test_a_longest_document_that_there_is_not_is_refused(corpus: Manifest) -> None:
    reader = ShardReader(corpus, "train")
    longest = int(reader.token_counts(0).max())
    reader.shards = (reader.shards[0].model_copy(update={"longest": longest + 1}),)
    with pytest.raises(BadShardError, match=f"longest document has {longest} tokens, the manifest says {longest + 1}"):
        reader.check()


@pytest.mark.parametrize(
    ("content", "columns", "message"),
    [
        (Content(), {"n_tokens": (1, 2**40)}, r"document 1 of train-000000\.tar gives 1099511627776 tokens, which its"),
        (Content(), {"n_tokens": (1, 1)}, "gives 1 tokens, which its"),
        (Content(), {"sizes": (1, 3), "n_tokens": (1, 1)}, "its 3 bytes cannot"),
        (Content(), {"n_tokens": (0, -1)}, "negative"),
        (Content(), {"n_bytes": (0, -1)}, "negative"),
        (Content(), {"offsets": (-1, 2**63 - 1)}, "places outside"),
        (Content(), {"sizes": (-1, 2**63 - 1)}, "places outside"),
        (TXT, {"n_tokens": (1, 2**20)}, "gives 1048576 tokens"),
        (GZIP, {"sizes": (1, 100), "n_tokens": (1, 16 * 103_200 + 4)}, "gives 1651204 tokens"),
        (GZIP, {"sizes": (1, 100), "n_tokens": (1, 16 * 103_200 + 3)}, ""),
        (NPY, {"sizes": (1, 100), "n_tokens": (1, 104)}, "gives 104 tokens"),
    ],
)
def test_counts_that_no_bytes_stand_for_are_refused(
    build_small: Any, tmp_path: Path, content: Content, columns: dict[str, tuple[int, int]], message: str
) -> None:
    reader = forged(build_small(tmp_path), content, **columns)
    if not message:
        reader.check()
        return
    with pytest.raises(BadShardError, match=message):
        reader.check()


def test_sums_that_the_manifest_does_not_have_are_refused(build_small: Any, tmp_path: Path) -> None:
    reader = forged(build_small(tmp_path), Content(), n_bytes=(0, 2**63 - 1))
    reader.check()
    entry = reader.shards[0]
    assert entry.bytes > 2**63  # which no int64 holds
    reader.shards = (entry.model_copy(update={"bytes": entry.bytes - 1}),)
    with pytest.raises(BadShardError, match=rf"its bytes is {entry.bytes}, the manifest says {entry.bytes - 1}"):
        reader.check()


class _Unreadable(Storage):
    """Opens shards so that they cannot be read, as a disk may that has an error."""

    def open(self, location: str, size: int, checksum: str) -> io.FileIO:
        return io.FileIO(location, "ab")


def test_a_shard_that_cannot_be_read_is_named(corpus: Manifest) -> None:
    with pytest.raises(BadShardError, match=r"train-000000\.tar cannot be read: Bad file descriptor"):
        ShardReader(corpus, "train", _Unreadable()).check()
