"""A checkpoint is there as a whole or not at all, whenever its writer was killed, and damage to it is noticed."""

import json
import math
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from scaletrain.checkpoint.commit import commit, prepare
from scaletrain.checkpoint.durable import write_text
from scaletrain.checkpoint.layout import folder_name, list_checkpoints, list_unfinished, partial_name
from scaletrain.checkpoint.retention import Retention, prune
from scaletrain.checkpoint.verify import Level, find_damage, newest_intact, require_checkpoint
from scaletrain.errors import CheckpointError

Damage = Callable[[Path], object]

# Saves step after step as a rank does, until it is killed.
WRITER = """
import sys
from pathlib import Path
from scaletrain.checkpoint.commit import commit, prepare
from scaletrain.checkpoint.layout import folder_name, partial_name
from scaletrain.checkpoint.retention import Retention, prune
from scaletrain.checkpoint.durable import write_text

checkpoints, step = Path(sys.argv[1]), int(sys.argv[2])
print("writes", flush=True)
while True:
    partial = checkpoints / partial_name(step)
    prepare(partial)
    records = {name: write_text(partial / name, f"{step:08d}" * 5000) for name in ("a.pt", "b.pt", "state.json")}
    commit(partial, checkpoints / folder_name(step), records)
    prune(checkpoints, Retention(2), step)
    step += 1
"""


def write(checkpoints: Path, step: int, loss: float | None = None) -> Path:
    """A complete checkpoint of three files."""
    partial = checkpoints / partial_name(step)
    prepare(partial)
    source = random.Random(step)
    names = ("weights.pt", "moments.pt", "state.json")
    texts = {name: source.randbytes(1500).hex() for name in names}
    if loss is not None:
        texts["state.json"] = json.dumps({"validation_loss": loss})
    records = {name: write_text(partial / name, text) for name, text in texts.items()}
    commit(partial, checkpoints / folder_name(step), records)
    return checkpoints / folder_name(step)


def test_a_writer_killed_at_any_moment_leaves_only_whole_checkpoints(tmp_path: Path) -> None:
    source = random.Random(0)
    step, interrupted = 1, 0
    for _ in range(12):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(step)],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
        )
        assert writer.stdout is not None and writer.stdout.readline() == b"writes\n"
        time.sleep(0.02 + source.uniform(0, 0.06))
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        interrupted += bool(list_unfinished(tmp_path))
        choice = newest_intact(tmp_path, "full")
        assert not choice.refused
        if choice.folder is not None:
            step = int(choice.folder.name.removeprefix("step_"))
            assert (choice.folder / "a.pt").read_text() == f"{step:08d}" * 5000
        step += 1
    assert step > 2 and interrupted, "the kills never met a writer at work"


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / "weights.pt").read_bytes())
    content[1234] ^= 4
    (folder / "weights.pt").write_bytes(content)


def change_the_list(folder: Path) -> None:
    content = json.loads((folder / "files.json").read_text())
    del content["files"]["weights.pt"]
    (folder / "files.json").write_text(json.dumps(content))


DAMAGES = [
    pytest.param(flip_a_bit, "weights.pt has another checksum", id="flipped bit"),
    pytest.param(
        lambda folder: (folder / "moments.pt").write_bytes(b"short"),
        "moments.pt has 5 bytes instead of 3000",
        id="truncated",
    ),
    pytest.param(lambda folder: (folder / "state.json").unlink(), "state.json is missing", id="missing"),
    pytest.param(change_the_list, "files.json is not the one that COMPLETE was written for", id="another list"),
    pytest.param(lambda folder: (folder / "files.json").unlink(), "files.json cannot be read", id="no list"),
    pytest.param(lambda folder: (folder / "COMPLETE").write_text(""), "files.json is not the one", id="no checksum"),
]


@pytest.mark.parametrize(("damage", "reason"), DAMAGES)
def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_taken(
    tmp_path: Path, damage: Damage, reason: str
) -> None:
    older, newer = write(tmp_path, 10), write(tmp_path, 20)
    assert newest_intact(tmp_path, "full").folder == newer
    damage(newer)
    choice = newest_intact(tmp_path, "full")
    assert choice.folder == older
    ((refused, why),) = choice.refused
    assert refused == newer and reason in why
    with pytest.raises(CheckpointError, match="Choose another step: step_00000020, step_00000010"):
        require_checkpoint(tmp_path, 20, "full")
    damage(older)
    with pytest.raises(CheckpointError, match=r"no intact checkpoint.*step_00000020.*step_00000010.*Train the run"):
        require_checkpoint(tmp_path, None, "full")


@pytest.mark.parametrize(("level", "damage"), [("sizes", flip_a_bit), ("off", change_the_list)])
def test_less_is_checked_where_less_was_asked_for(tmp_path: Path, level: Level, damage: Damage) -> None:
    folder = write(tmp_path, 10)
    damage(folder)
    assert find_damage(folder, level) is None
    assert find_damage(folder, "full") is not None


def test_without_its_last_file_a_checkpoint_does_not_exist(tmp_path: Path) -> None:
    folder = write(tmp_path, 10)
    (folder / "COMPLETE").unlink()
    assert list_checkpoints(tmp_path) == []
    assert newest_intact(tmp_path, "full").folder is None and list_checkpoints(tmp_path / "nowhere") == []


def test_the_list_holds_every_file_with_its_size(tmp_path: Path) -> None:
    folder = write(tmp_path, 10)
    listed = json.loads((folder / "files.json").read_text())["files"]
    assert {name: record["size"] for name, record in listed.items()} == {
        name: 3000 for name in ("weights.pt", "moments.pt", "state.json")
    }
    assert all(len(record["xxh3_128"]) == 32 for record in listed.values())


def test_the_oldest_are_deleted_and_an_unfinished_one_is_no_successor(tmp_path: Path) -> None:
    for step in (10, 20, 30, 100_000_000):
        write(tmp_path, step)
    (tmp_path / partial_name(40)).mkdir()
    deleted = prune(tmp_path, Retention(2), 100_000_000)
    assert [folder.name for folder in deleted] == ["step_00000020", "step_00000010"]
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["step_100000000", "step_00000030"]
    assert list_unfinished(tmp_path) == [tmp_path / partial_name(40)]
    assert prune(tmp_path, Retention(2), 100_000_000) == []


def test_a_refused_checkpoint_takes_no_intact_ones_place(tmp_path: Path) -> None:
    write(tmp_path, 20)
    flip_a_bit(write(tmp_path, 30))
    # The run goes on from step 20 and saves at 25.
    write(tmp_path, 25)
    assert [folder.name for folder in prune(tmp_path, Retention(1), 25)] == ["step_00000020"]
    choice = newest_intact(tmp_path, "full")
    assert choice.folder == tmp_path / "step_00000025" and len(choice.refused) == 1


def test_a_step_that_is_reached_again_replaces_what_was_saved(tmp_path: Path) -> None:
    flip_a_bit(write(tmp_path, 10))
    folder = write(tmp_path, 10)
    assert find_damage(folder, "full") is None
    assert require_checkpoint(tmp_path, 10, "full") == folder
    with pytest.raises(CheckpointError, match=r"step 15 has no checkpoint in .*there are: step_00000010"):
        require_checkpoint(tmp_path, 15, "full")


def test_the_best_is_the_one_with_the_lowest_loss_and_no_other_stands_in_for_it(tmp_path: Path) -> None:
    write(tmp_path, 5)
    with pytest.raises(CheckpointError, match="saved at a step that was evaluated"):
        require_checkpoint(tmp_path, "best", "full")
    best = [write(tmp_path, step, loss) for step, loss in ((10, 3.0), (20, 2.5), (30, 2.7))][1]
    write(tmp_path, 40, math.nan)
    assert require_checkpoint(tmp_path, "best", "full") == best
    flip_a_bit(best)
    with pytest.raises(CheckpointError, match=r"step_00000020, the one with the lowest validation loss: weights\.pt"):
        require_checkpoint(tmp_path, "best", "full")
