import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from scaletrain.data.manifest import Manifest
from scaletrain.data.shards import ShardReader
from scaletrain.errors import DataError


def test_a_manifest_says_what_there_is(corpus: Manifest) -> None:
    folder = Path(corpus.location).parent
    assert Manifest.open(folder) == Manifest.open(corpus.location) == corpus
    assert corpus.tokenizer.sha256 == hashlib.sha256(corpus.read_tokenizer()).hexdigest()
    assert corpus.dtype == "uint16"
    for split, totals in corpus.totals.items():
        shards = corpus.split(split)
        assert totals.tokens == sum(shard.tokens for shard in shards)
        assert all(Path(corpus.locate(shard.path)).stat().st_size == shard.size for shard in shards)
    assert corpus.totals["train"].documents + corpus.totals["validation"].documents == 120
    with pytest.raises(DataError, match="no shard in split 'test'"):
        corpus.split("test")


def test_equal_corpora_have_equal_fingerprints(corpus: Manifest, build_small: Any, tmp_path: Path) -> None:
    again = build_small(tmp_path / "again")
    assert again.fingerprint == corpus.fingerprint
    for name in ("train-000000.tar", "train-000000.index.npz", "tokenizer.json", "manifest.json"):
        assert Path(again.locate(name)).read_bytes() == Path(corpus.locate(name)).read_bytes()


def test_what_examples_mean_is_part_of_the_fingerprint(corpus: Manifest, tmp_path: Path) -> None:
    fields = json.loads(Path(corpus.location).read_text())
    for name in ("parts", "values", "classes"):  # as in a manifest that was written before there were any
        fields.pop(name)
    assert Manifest(**fields, location="m").fingerprint == corpus.fingerprint
    with_labels = [{"values": ["label"], "classes": names} for names in (["x", "y"], ["y", "x"])]
    changed = [{}, {"parts": True}, {"values": ["size"]}, *with_labels, {"values": ["x", "y"], "classes": ["x", "y"]}]
    fingerprints = [Manifest(**{**fields, **change}, location="m").fingerprint for change in changed]
    assert len(set(fingerprints)) == len(changed)


def test_the_longest_document_is_known_where_all_shards_tell(corpus: Manifest) -> None:
    counts = [
        ShardReader(corpus, split).token_counts(n) for split in corpus.splits for n in range(len(corpus.split(split)))
    ]
    assert corpus.longest == max(count.max() for count in counts)
    silent = corpus.splits["validation"][-1].model_copy(update={"longest": None})
    assert corpus.model_copy(update={"splits": {**corpus.splits, "validation": (silent,)}}).longest is None


def test_another_tokenizer_is_refused_with_both_hashes(build_small: Any, tmp_path: Path) -> None:
    manifest = build_small(tmp_path)
    path = Path(manifest.locate(manifest.tokenizer.file))
    path.write_text(path.read_text() + " ")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(DataError, match="not the tokenizer") as refusal:
        Manifest.open(tmp_path)
    assert found in str(refusal.value) and manifest.tokenizer.sha256 in str(refusal.value)
    path.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        Manifest.open(tmp_path)


def test_a_truncated_or_missing_shard_is_refused(build_small: Any, tmp_path: Path) -> None:
    manifest = build_small(tmp_path)
    shard = manifest.splits["train"][1]
    path = tmp_path / shard.path
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(DataError, match=rf"{shard.path} is truncated: it has {shard.size - 512} bytes.*{shard.size}"):
        Manifest.open(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=rf"{shard.path} cannot be read"):
        Manifest.open(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "has version 2, this program reads version 1"),
        ({"dtype": "int8"}, "dtype is not valid"),
        ({"extra": 1}, "extra is not valid"),
        ({"totals": {}}, "totals of split 'train'"),
        ({"tokenizer": {"vocab_size": 2**16 + 1}}, "vocab_size 65537 must be at most 65536, as dtype is uint16"),
        ({"tokenizer": {"vocab_size": 2**32 + 1}, "dtype": "uint32"}, "must be at most 4294967296"),
        ({"tokenizer": {"eos_id": 300}}, "tokenizer is not valid.*eos_id 300 and bos_id None must be below"),
        ({"tokenizer": {"bos_id": 10**30}}, "must be below vocab_size 300"),
        ({"parts": True, "tokenizer": {"vocab_size": 2**15 + 1}}, "at most 32768, as dtype is uint16 with parts"),
        ({"values": ["a", "a"]}, "must have a name of its own"),
        ({"values": ["label"], "classes": ["x"]}, "classes must be two or more"),
        ({"values": ["x"], "classes": ["x", "y"]}, "values be 'label' or the classes"),
        ({"parts": True, "content": {"field": "txt"}}, "only documents of tokens.npy can have parts"),
        ({"totals": {"train": {"documents": 1, "tokens": 10**30, "bytes": 1}}}, "tokens is not valid"),
    ],
)
def test_a_changed_manifest_is_refused(corpus: Manifest, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    fields = json.loads(Path(corpus.location).read_text())
    path = tmp_path / "manifest.json"
    tokenizer = {**fields["tokenizer"], **change.get("tokenizer", {})}
    path.write_text(json.dumps({**fields, **change, "tokenizer": tokenizer}))
    with pytest.raises(DataError, match=message):
        Manifest.open(path)


@pytest.mark.parametrize(
    "path", ["../x.tar", "a/../../x.tar", "c:x.tar", "", ".", "a\0.tar", "/x\n.tar", "s3://b/\x1b.tar"]
)
def test_a_path_that_leads_out_of_the_folder_is_refused(corpus: Manifest, tmp_path: Path, path: str) -> None:
    fields = json.loads(Path(corpus.location).read_text())
    fields["splits"]["train"][0]["path"] = path
    (tmp_path / "manifest.json").write_text(json.dumps(fields))
    with pytest.raises(DataError, match=r"train\.0\.path.*inside the manifest's folder"):
        Manifest.open(tmp_path)


@pytest.mark.parametrize("key", ["index", "tokenizer"])
@pytest.mark.parametrize("path", ["/etc/passwd", "s3://bucket/x", "../x", "a\0"])
def test_what_lies_beside_a_manifest_lies_in_its_folder(corpus: Manifest, tmp_path: Path, key: str, path: str) -> None:
    fields = json.loads(Path(corpus.location).read_text())
    if key == "index":
        fields["splits"]["train"][0]["index"] = path
    else:
        fields["tokenizer"]["file"] = path
    (tmp_path / "manifest.json").write_text(json.dumps(fields))
    with pytest.raises(DataError, match="inside the manifest's folder"):
        Manifest.open(tmp_path)


def test_shards_made_elsewhere_may_lie_anywhere(build_small: Any, tmp_path: Path) -> None:
    manifest = build_small(tmp_path / "corpus")
    shard, other = manifest.splits["train"][:2]
    (tmp_path / "corpus" / shard.path).rename(tmp_path / "moved.tar")
    fields = json.loads(Path(manifest.location).read_text())
    fields["splits"]["train"][0] |= {"path": str(tmp_path / "moved.tar"), "index": "train-000000.index.npz"}
    fields["splits"]["train"][1]["path"] = "s3://bucket/" + other.path
    Path(manifest.location).write_text(json.dumps(fields))
    opened = Manifest.open(tmp_path / "corpus")
    assert opened.locate(opened.splits["train"][0].path) == str(tmp_path / "moved.tar")
    assert opened.locate(opened.splits["train"][1].path) == f"s3://bucket/{other.path}"
    assert opened.fingerprint == manifest.fingerprint
    (tmp_path / "moved.tar").unlink()
    with pytest.raises(DataError, match=r"moved\.tar cannot be read"):
        Manifest.open(tmp_path / "corpus")


@pytest.mark.parametrize("content", [None, "", "[]", "{", "null", "[" * 200_000])
def test_what_is_no_manifest_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "manifest.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=r"manifest\.json"):
        Manifest.open(path)


def test_a_url_with_a_query_has_nothing_beside_it() -> None:
    with pytest.raises(DataError, match=r"http://127\.0\.0\.1/m/manifest\.json has a query or a fragment"):
        Manifest.open("http://127.0.0.1/m/manifest.json?key=hidden")
