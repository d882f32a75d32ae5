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
