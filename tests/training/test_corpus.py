"""What is told of a corpus before a run begins."""

import logging
import shutil
import threading
from pathlib import Path

import fsspec
import pytest
import xxhash

from scaletrain.config.schema import DataConfig, ModelConfig, RunConfig, SourceConfig, TaskConfig, TrainConfig
from scaletrain.errors import ConfigError, DataError
from scaletrain.training.corpus import check_corpora, open_corpora, open_storage, phases_of
from tests.training.task_runs import build_examples


def config_of(folder: Path, **data: object) -> RunConfig:
    sources = tuple(SourceConfig(name=name, manifest=str(folder / name)) for name in ("web", "books"))
    return RunConfig(
        model=ModelConfig(vocab_size=320),
        data=DataConfig(**{"sources": sources, **data}),  # type: ignore[arg-type]
        train=TrainConfig(max_seq_len=16),
    )


def test_a_bad_shard_ends_a_start_unless_it_may_be_left_out(
    corpora: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(corpora, tmp_path / "c")
    (tmp_path / "c" / "web" / "train-000001.tar").unlink()
    (tmp_path / "c" / "books" / "train-000000.index.npz").write_bytes(b"no index")
    with pytest.raises(DataError, match=r"train-000001\.tar cannot be read"):
        open_corpora(config_of(tmp_path / "c"))
    allowing = config_of(tmp_path / "c", on_bad_shard="skip")
    with caplog.at_level(logging.WARNING):
        check_corpora(allowing, open_corpora(allowing))
    told = [record.message for record in caplog.records]
    assert len(told) == 2 and all("will be left out when it is met" in text for text in told)
    # What is judged must stay the same.
    (tmp_path / "c" / "web" / "validation-000000.tar").unlink()
    with pytest.raises(DataError, match=r"validation-000000\.tar"):
        check_corpora(allowing, open_corpora(allowing))


def test_what_cannot_be_trained_on_is_told(corpora: Path) -> None:
    with pytest.raises(DataError, match=r"num_lanes is 999.*web has"):
        check_corpora(config_of(corpora, num_lanes=999), open_corpora(config_of(corpora)))
    with pytest.raises(DataError, match=r"not counted for best-fit packing of 17.*make_shards\.py pack"):
        config = config_of(corpora, packing="best_fit").model_copy(update={"train": TrainConfig(max_seq_len=17)})
        check_corpora(config, open_corpora(config))
    with pytest.raises(ConfigError, match=r"model\.vocab_size is 299.*Set --model\.vocab_size"):
        open_corpora(config_of(corpora).model_copy(update={"model": ModelConfig(vocab_size=299)}))


def test_a_head_of_another_width_is_told_before_torch_is_loaded(tmp_path: Path) -> None:
    manifest = str(build_examples(tmp_path / "examples", "classes") / "manifest.json")
    config = RunConfig(
        model=ModelConfig(vocab_size=384, n_classes=3),
        data=DataConfig(manifest=manifest, packing="document"),
        task=TaskConfig(name="classification"),
    )
    with pytest.raises(ConfigError, match=r"is 3, but .* has 12 classes\. Set --model\.n_classes 12"):
        check_corpora(config, open_corpora(config))


def test_phases_end_where_all_lanes_have_consumed_their_tokens() -> None:
    data = DataConfig.model_validate(
        {
            "sources": [{"name": "a", "manifest": "a", "weight": 2}, {"name": "b", "manifest": "b"}],
            "phases": [{"until_tokens": 100, "weights": {"b": 1}}],
            "num_lanes": 3,
        }
    )
    assert [(phase.until_place, phase.weights) for phase in phases_of(data, 8)] == [(5, (0.0, 1.0)), (None, (2.0, 1.0))]


@pytest.mark.parametrize(("num_lanes", "expected"), [(2, 2), (1, 3)])
def test_the_ranks_of_a_machine_share_the_room_for_what_is_fetched_ahead(
    tmp_path: Path, num_lanes: int, expected: int
) -> None:
    elsewhere = fsspec.filesystem("memory")
    contents = [bytes([letter]) * 100 for letter in b"abc"]
    wanted = [
        (f"memory://{tmp_path}/{content[:1].decode()}", 100, xxhash.xxh3_128_hexdigest(content)) for content in contents
    ]
    for (url, _, _), content in zip(wanted, contents, strict=True):
        elsewhere.pipe(url, content)
    room = DataConfig(cache_dir=tmp_path / "cache", cache_gib=500 / 2**30, num_lanes=num_lanes)
    open_storage(room, local_world_size=2).prefetch(wanted)
    # Of 500 bytes each rank may fill 250; with one lane both want the same, and may fill all of it.
    for thread in threading.enumerate():
        if thread.name == "prefetch":
            thread.join(10.0)
    here = {path.name for path in (tmp_path / "cache").iterdir()} - {".lock"}
    assert here == {f"{checksum}.shard" for _, _, checksum in wanted[:expected]}
    elsewhere.rm(str(tmp_path), recursive=True)
