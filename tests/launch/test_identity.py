"""What may change between two starts of a run, value by value."""

import json
from pathlib import Path

import pytest

from scaletrain.config.load import load_config
from scaletrain.errors import ConfigError
from scaletrain.launch.identity import Identity, changes, identity_of, read_identity, write_identity

SOURCES = "[{name: web, manifest: data/web, weight: 0.8}, {name: code, manifest: data/code}]"


def identity(**overrides: str) -> Identity:
    given = {key.replace("__", "."): text for key, text in overrides.items()}
    return identity_of(load_config(None, given), "tokenizer", "data")


def mixed(sources: str = SOURCES, **overrides: str) -> Identity:
    return identity(data__corpus="none", data__sources=sources, **overrides)


def changed(old: Identity, new: Identity) -> dict[str, tuple[object, object]]:
    return {change.key: (change.old, change.new) for change in changes(old, new, Path("run"))}


def refusal(old: Identity, new: Identity) -> str:
    with pytest.raises(ConfigError) as caught:
        changes(old, new, Path("run"))
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.global_batch_size", "64"),
        ("train.micro_batch_size", "2"),
        ("train.batch_schedule", "[{until_tokens: 1e6, global_batch_size: 16}]"),
        ("data.cache_dir", "/scratch"),
        ("data.cache_gib", "1"),
        ("data.fetch_attempts", "3"),
        ("data.fetch_stall_s", "5"),
        ("data.allow_pipe", "true"),
        ("data.on_bad_shard", "skip"),
        ("data.phases", "[{until_tokens: 5, weights: {web: 1}}]"),
    ],
)
def test_free(key: str, value: str) -> None:
    found = changed(mixed(), mixed(**{key.replace(".", "__"): value}))
    assert list(found) == [key]
    json.dumps(found)


@pytest.mark.parametrize(
    ("key", "value"), [("data.packing", "best_fit"), ("data.num_lanes", "2"), ("train.max_seq_len", "64")]
)
def test_fixed(key: str, value: str) -> None:
    assert f"{key}: " in refusal(mixed(), mixed(**{key.replace(".", "__"): value}))


def test_places_and_weights_of_sources_are_free() -> None:
    elsewhere = "[{name: web, manifest: s3://b/web, weight: 0.5}, {name: code, manifest: data/code}]"
    assert changed(mixed(), mixed(elsewhere)) == {
        "data.sources.manifest": (["data/web", "data/code"], ["s3://b/web", "data/code"]),
        "data.sources.weight": ([0.8, 1.0], [0.5, 1.0]),
    }


@pytest.mark.parametrize(
    "other",
    [
        "[{name: code, manifest: data/code}, {name: web, manifest: data/web, weight: 0.8}]",
        "[{name: web, manifest: data/web, weight: 0.8}]",
        "[{name: web, manifest: data/web, weight: 0.8}, {name: prose, manifest: data/code}]",
    ],
    ids=["order", "fewer", "name"],
)
def test_names_of_sources_and_their_order_are_fixed(other: str) -> None:
    assert "data.sources.name: ['web', 'code'] there, [" in refusal(mixed(), mixed(other))


class TestOfAnEarlierVersion:
    """A file that was written before there were mixtures, packings and schedules."""

    @pytest.fixture
    def old(self, tmp_path: Path) -> Identity:
        now = identity()
        of_now = ("data.packing", "data.sources.name")
        of_then = {"train.global_batch_size": now.free["train.global_batch_size"]}
        fixed = {key: value for key, value in now.fixed.items() if key not in of_now} | of_then
        free = {key: value for key, value in now.free.items() if "sources" not in key and key not in of_then}
        for key in ("data.phases", "train.batch_schedule", "data.on_bad_shard", "data.cache_dir", "data.cache_gib"):
            del free[key]
        write_identity(tmp_path / "identity.json", Identity(fixed, free))
        read = read_identity(tmp_path / "identity.json")
        assert read is not None
        return read

    def test_goes_on(self, old: Identity) -> None:
        assert changed(old, identity()) == {}

    def test_a_batch_size_that_was_fixed_then_is_free_now_and_told(self, old: Identity) -> None:
        assert changed(old, identity(train__global_batch_size="48"))["train.global_batch_size"] == (16, 48)

    def test_what_it_could_not_be_is_refused(self, old: Identity) -> None:
        assert "data.packing: concat there, best_fit here" in refusal(old, identity(data__packing="best_fit"))
        assert "data.sources.name: [] there, ['web', 'code'] here" in refusal(old, mixed())


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    whole = mixed(data__phases="[{until_tokens: 4e9, weights: {web: 0.1}}]")
    write_identity(tmp_path / "identity.json", whole)
    assert read_identity(tmp_path / "identity.json") == whole
