"""Saving beside the training: what is in the files, what a full disk does, and which place a run goes on from."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from scaletrain.checkpoint.commit import commit, prepare
from scaletrain.checkpoint.durable import write_text
from scaletrain.checkpoint.fragments import load_tensors
from scaletrain.checkpoint.layout import STATE, folder_name, list_checkpoints, list_unfinished, partial_name
from scaletrain.checkpoint.retention import Retention, prune
from scaletrain.training.lineage import read_lineage
from tests.distributed import run_on_ranks
from tests.engine.bodies import Case
from tests.training import saving_bodies as bodies
from tests.training.saving_bodies import Plan


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def assert_same(one: Any, other: Any) -> None:
    """Two contents of files are equal in their tensors' bits and everything else that counts."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other) and one.dtype == other.dtype
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        for values in zip(one, other, strict=True):
            assert_same(*values)
    elif isinstance(one, int | float | str):
        assert one == other


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_files_are_the_same_whether_training_waits_or_goes_on(stage: int, tmp_path: Path) -> None:
    run_on_ranks(2, bodies.save_twice, str(tmp_path), Case(stage=stage, precision="bf16"))
    at_once, beside = (tmp_path / name / folder_name(2) for name in ("at_once", "beside"))
    files = sorted(path.name for path in at_once.glob("*.pt"))
    assert files and files == sorted(path.name for path in beside.glob("*.pt"))
    for name in files:
        assert_same(load_tensors(at_once / name), load_tensors(beside / name))


def test_copies_in_host_memory_share_what_is_shared() -> None:
    bodies.copies_share_what_is_shared()


@pytest.mark.parametrize("background", [True, False])
def test_a_disk_that_is_full_for_a_while_ends_no_run(background: bool, tmp_path: Path) -> None:
    plan = Plan(str(tmp_path), Case(stage=1), 8, every_steps=3, full_disk=range(3, 5), background=background)
    results = run_on_ranks(2, bodies.train, plan)
    assert all(result["fits"] for result in results)
    # Refused at 3, again a step later, and two steps after that there is room.
    assert bodies.events(str(tmp_path)) == [
        ("save_failed", 3, "shared"),
        ("save_failed", 4, "shared"),
        ("save", 6, "shared"),
        ("save", 8, "shared"),
    ]
    assert list_unfinished(tmp_path / "checkpoints") == []
    reason = json.loads((tmp_path / "events.jsonl").read_text().splitlines()[0])["reason"]
    assert "File too large" in reason


def test_too_little_space_is_seen_before_a_byte_is_written(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or os.system(f"mount -t tmpfs -o size=12m tmpfs {disk} 2>/dev/null") != 0:
        pytest.skip("a small file system can be mounted by root only")
    try:
        with pytest.raises(AssertionError, match=r"step 2 cannot be saved: 0.0\d+ GB are needed and 0.0\d+ GB free"):
            run_on_ranks(1, bodies.train, Plan(str(disk / "run"), steps=2, goes_on=True))
        assert bodies.events(str(disk / "run"))[0] == ("save_failed", 2, "shared")
    finally:
        assert os.system(f"umount -l {disk}") == 0


def test_a_checkpoint_on_request_is_one_more(tmp_path: Path) -> None:
    run_on_ranks(2, bodies.train, Plan(str(tmp_path), steps=5, every_steps=4, save_requested_at=3))
    assert [event[:2] for event in bodies.events(str(tmp_path))] == [("save", 3), ("save", 4), ("save", 5)]


def test_a_run_goes_on_from_the_newest_that_is_complete_on_all_nodes(tmp_path: Path) -> None:
    plan = Plan(str(tmp_path / "cut"), Case(stage=2), steps=7, every_steps=4, local=1)
    uncut = run_on_ranks(2, bodies.train, Plan(str(tmp_path / "uncut"), Case(stage=2), steps=9))[0]
    run_on_ranks(2, bodies.train, plan)
    for node in range(2):
        local = bodies.node_folder(plan.folder, node)
        assert [folder.name for folder in list_checkpoints(local)] == [folder_name(7), folder_name(6)]
        assert len(list((local / folder_name(7)).glob("*optim_states.pt"))) == 1
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / folder_name(7))
    kept = tmp_path / "kept"
    shutil.copytree(tmp_path / "cut", kept)

    # Each node's own disk has newer ones than the shared one.
    results = run_on_ranks(2, bodies.train, replace(plan, steps=9, every_steps=0, local=100))
    assert [result["begun_at"] for result in results] == [7, 7]
    assert results[0]["from"] == str(bodies.node_folder(plan.folder, 0) / folder_name(7))
    assert results[0]["losses"] == uncut["losses"][7:]

    # One node has lost a bit of it: both go to 6, which is whole on both. It ends there, and saves where all can see.
    flip_a_bit(next((bodies.node_folder(str(kept), 1) / folder_name(7)).glob("*optim_states.pt")))
    later = replace(plan, folder=str(kept), steps=6, every_steps=0, local=100)
    results = run_on_ranks(2, bodies.train, later)
    assert [result["begun_at"] for result in results] == [6, 6]
    refused = [(Path(path).name, "another checksum" in why) for path, why in results[0]["refused"]]
    assert refused == [(folder_name(7), True)]
    (alone,) = run_on_ranks(1, bodies.train, replace(later, local=0))
    assert alone["from"] == str(kept / "checkpoints" / folder_name(6)) and alone["losses"] == []
    # What was refused makes room once there is a new one in its place; here there was none yet.
    assert folder_name(7) in [folder.name for folder in list_checkpoints(bodies.node_folder(str(kept), 1))]


def test_a_local_checkpoint_of_another_topology_is_passed_over(tmp_path: Path) -> None:
    plan = Plan(str(tmp_path), Case(stage=1), steps=3, every_steps=2, local=1)
    run_on_ranks(2, bodies.train, plan)
    shutil.rmtree(tmp_path / "checkpoints" / folder_name(3))
    # A third node never had any; a single one lacks what the second wrote.
    assert [result["begun_at"] for result in run_on_ranks(3, bodies.train, replace(plan, steps=2))] == [2, 2, 2]
    (result,) = run_on_ranks(1, bodies.train, replace(plan, steps=2))
    assert result["begun_at"] == 2
    assert [(Path(path).parent.name, "missing" in why) for path, why in result["refused"]] == [("run", True)]


def test_parts_of_different_saves_are_never_joined(tmp_path: Path) -> None:
    plans = [Plan(str(tmp_path / name), Case(stage=2), steps=3, every_steps=2, local=1, goes_on=True) for name in "ab"]
    for plan in plans:
        run_on_ranks(2, bodies.train, plan)
    mixed, other = (bodies.node_folder(plan.folder, 1) / folder_name(3) for plan in plans)
    shutil.rmtree(mixed)
    shutil.copytree(other, mixed)
    shutil.rmtree(tmp_path / "a" / "checkpoints" / folder_name(3))
    results = run_on_ranks(2, bodies.train, replace(plans[0], local=100, every_steps=0))
    assert [result["begun_at"] for result in results] == [2, 2]
    assert results[0]["refused"][0][1] == results[1]["refused"][0][1] == "the nodes hold parts of different saves"


def test_a_save_that_one_node_cannot_commit_is_on_none(tmp_path: Path) -> None:
    plan = Plan(str(tmp_path), Case(stage=2), steps=2, every_steps=0, local=2)
    blocked = bodies.node_folder(plan.folder, 1) / folder_name(2)
    blocked.parent.mkdir(parents=True)
    blocked.touch()  # no folder: it cannot be replaced like one
    run_on_ranks(2, bodies.train, plan)
    assert bodies.events(str(tmp_path)) == [("save_failed", 2, "local"), ("save", 2, "shared")]
    assert list(bodies.node_folder(plan.folder, 0).iterdir()) == []


def test_a_folder_that_several_nodes_see_is_no_nodes_own(tmp_path: Path) -> None:
    told = run_on_ranks(2, bodies.open_places, str(tmp_path), str(tmp_path / "disk"))
    assert all("several nodes see the same folder" in text for text in told)
    told = run_on_ranks(2, bodies.open_places, str(tmp_path), "/proc/nowhere")
    assert told[0] == told[1] and "No such file or directory on node" in told[0]


def test_a_run_whose_checkpoints_are_gone_does_not_begin_anew_in_silence(tmp_path: Path) -> None:
    plan = Plan(str(tmp_path), steps=2)
    run_on_ranks(1, bodies.train, plan)
    (tmp_path / "checkpoints" / folder_name(2) / "COMPLETE").unlink()
    with pytest.raises(AssertionError, match=r"(?s)none can be loaded:.*step_00000002: COMPLETE is missing"):
        run_on_ranks(1, bodies.train, plan)
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(
        AssertionError, match=r"this run has saved step 2, but .* holds no checkpoint. Mount or restore"
    ):
        run_on_ranks(1, bodies.train, replace(plan, lineage=read_lineage(tmp_path)))


def test_what_was_refused_makes_room_for_what_replaces_it(tmp_path: Path) -> None:
    plan = Plan(str(tmp_path), Case(stage=1), steps=5, every_steps=2)
    run_on_ranks(2, bodies.train, plan)
    flip_a_bit(next((tmp_path / "checkpoints" / folder_name(5)).glob("*optim_states.pt")))
    shutil.copytree(tmp_path / "checkpoints" / folder_name(4), tmp_path / "checkpoints" / folder_name(9))
    results = run_on_ranks(2, bodies.train, replace(plan, steps=6))
    assert [result["begun_at"] for result in results] == [4, 4]
    assert "it holds step 4" in [reason for _, reason in results[0]["refused"]]
    assert [folder.name for folder in list_checkpoints(tmp_path / "checkpoints")] == [folder_name(6), folder_name(4)]


def test_whole_models_are_on_every_nodes_disk(tmp_path: Path) -> None:
    plan = Plan(str(tmp_path), Case(stage=0), steps=3, every_steps=0, local=2)
    run_on_ranks(2, bodies.train, plan)
    shutil.rmtree(tmp_path / "checkpoints")
    assert [result["begun_at"] for result in run_on_ranks(2, bodies.train, plan)] == [2, 2]


@pytest.mark.parametrize("stage", [0, 3])
def test_what_one_rank_cannot_load_none_loads(stage: int, tmp_path: Path) -> None:
    run_on_ranks(2, bodies.train, Plan(str(tmp_path), Case(stage=stage), steps=2))
    told = run_on_ranks(2, bodies.load_alone_broken, str(tmp_path), Case(stage=stage), 1)
    assert told[0] == told[1] and "torn" in told[0][0]


def write(checkpoints: Path, step: int, loss: float | None) -> None:
    partial = checkpoints / partial_name(step)
    prepare(partial)
    state = json.dumps({"validation_loss": loss})
    commit(partial, checkpoints / folder_name(step), {STATE: write_text(partial / STATE, state)})


def test_the_best_and_those_at_long_intervals_stay(tmp_path: Path) -> None:
    losses = {10: 3.0, 20: 2.0, 30: 2.5, 40: None, 50: 2.7, 60: None, 70: 2.9}
    for step, loss in losses.items():
        write(tmp_path, step, loss)
        prune(tmp_path, Retention(1, keep_every_steps=30, keep_best=True), step)
    assert [folder.name for folder in list_checkpoints(tmp_path)] == [folder_name(step) for step in (70, 60, 30, 20)]
