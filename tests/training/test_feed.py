"""Shards that cannot be read: a run stops on all ranks at once, or goes on without them, the same way ever after."""

import bisect
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest

from scaletrain.protocols import SkippedShard
from tests.training.data_runs import (
    STEPS,
    Damage,
    DataRun,
    batch_hashes,
    damage,
    first_touched,
    shard_path,
)

SKIP = {"data.on_bad_shard": "skip", "checkpoint.every_steps": 2}


@pytest.fixture
def own_corpora(corpora: Path, tmp_path: Path) -> Path:
    """Corpora that a test may damage."""
    return Path(shutil.copytree(corpora, tmp_path / "corpora"))


def restore(corpora: Path, own_corpora: Path) -> None:
    shutil.copytree(corpora, own_corpora, dirs_exist_ok=True)


def met_in_the_middle(run: DataRun, source: str, how: Damage) -> tuple[int, int]:
    """A shard that the run comes to in its middle when it is damaged so, and the sequence."""
    dataset = run.dataset()
    reader = dataset.readers[dataset.names.index(source)]
    found = {shard: first_touched(dataset, source, shard, how) for shard in range(len(reader.shards))}
    shard = min(found, key=lambda shard: abs(found[shard] - 40))
    assert 12 <= found[shard] < 70
    return shard, found[shard]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "source", "ranks", "workers"),
    [
        ("token", "web", (2, 3, 1), 1),
        pytest.param("truncated", "books", (3, 2), 0, marks=pytest.mark.thorough),
        ("deleted", "web", (2, 1), 0),
        pytest.param("index", "web", (3, 2), 1, marks=pytest.mark.thorough),
    ],
)
def test_all_ranks_go_on_without_a_bad_shard_and_so_does_each_later_start(
    corpora: Path, own_corpora: Path, tmp_path: Path, how: Damage, source: str, ranks: tuple[int, ...], workers: int
) -> None:
    # With as many lanes as ranks only one of them meets the shard.
    run = DataRun(tmp_path, own_corpora, {**SKIP, "data.num_lanes": ranks[0], "data.num_workers": workers})
    shard, first = met_in_the_middle(run, source, how)
    path = shard_path(own_corpora, source, shard)
    (tmp_path / "reference").mkdir()
    reference = DataRun(tmp_path / "reference", corpora, run.overrides)
    run.complete(ranks[0], [(str(path), how)])
    step = bisect.bisect_right(run.ends, first)  # the steps before that one
    skipped = SkippedShard(source, shard, str(path), run.ends[step - 1], how == "index")
    (event,) = run.events("skip_shard")
    assert {key: event[key] for key in asdict(skipped)} == asdict(skipped)
    assert event["step"] == step and path.name.removesuffix(".tar") in event["reason"]
    hashes = run.hashes
    assert hashes == batch_hashes(reference.dataset([skipped]), run.ends)
    whole = batch_hashes(reference.dataset(), run.ends)
    assert hashes[:step] == whole[:step] and hashes[step] != whole[step]
    assert [row.get("data/skipped_shards") for row in run.rows] == [None] * step + [1.0] * (STEPS - step)
    before, after = step // 2 * 2, step // 2 * 2 + 2
    assert run.saved_skips(before) == [] and run.saved_skips(after) == [asdict(skipped)]
    # Whether the shard is still as bad or whole again, every later start does the same as the first.
    if how != "deleted":
        restore(corpora, own_corpora)
    for world_size, going_on_at in zip(ranks[1:], (before, after), strict=False):
        run.forget_checkpoints_behind(going_on_at)
        run.complete(world_size, train__micro_batch_size=3)
        assert run.events("resume")[-1]["step"] == going_on_at
        assert run.hashes == hashes and run.saved_skips(STEPS) == [asdict(skipped)]
    assert len(run.events("skip_shard")) == 1


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_without_leave_all_ranks_stop_with_one_message(
    uncut: DataRun, corpora: Path, own_corpora: Path, tmp_path: Path, workers: int
) -> None:
    run = DataRun(tmp_path, own_corpora, {"checkpoint.every_steps": 2, "data.num_workers": workers})
    shard, first = met_in_the_middle(run, "books", "token")
    path = shard_path(own_corpora, "books", shard)
    told = run.start(2, [(str(path), "token")])
    assert len(set(told)) == 1
    assert f"Sequence {first} holds token" in told[0] and str(path) in told[0] and "Copy it again" in told[0]
    done = len(run.hashes)
    assert run.ends[-1] <= first < uncut.ends[done]
    assert not run.events("skip_shard")
    # Restored, it goes on where it ended: what was done is saved.
    restore(corpora, own_corpora)
    run.complete(3)
    assert run.events("resume")[-1]["step"] == done
    assert run.hashes == uncut.hashes


def test_more_than_a_few_bad_shards_end_the_run_at_every_start(own_corpora: Path, tmp_path: Path) -> None:
    run = DataRun(tmp_path, own_corpora, SKIP)
    dataset = run.dataset()
    found = sorted((first_touched(dataset, "web", shard, "token"), shard) for shard in range(6))
    found = [(first, shard) for first, shard in found if first < 80]
    assert found[0][0] < 30 < found[-1][0]
    for _, shard in (found[0], found[-1]):
        damage(shard_path(own_corpora, "web", shard), "token")
    for _ in range(2):
        told = run.start(2)
        assert len(set(told)) == 1
        assert "2 of the 6 shards of web cannot be read" in told[0] and "Restore them" in told[0]
    assert len(run.events("skip_shard")) == 1
    # The second one is not recorded as left out, or the next start would go on without it.
    assert run.ends[-1] <= found[-1][0] < run.ends[-1] + 8


def test_a_bad_validation_shard_ends_all_ranks(own_corpora: Path, tmp_path: Path) -> None:
    run = DataRun(tmp_path, own_corpora, {**SKIP, "eval.every_steps": 2})
    path = next((own_corpora / "web").glob("validation-*.tar"))
    told = run.start(3, [(str(path), "deleted")])
    assert len(set(told)) == 1
    assert str(path) in told[0] and told[0].startswith("DataError")
    assert len(run.hashes) == 2
