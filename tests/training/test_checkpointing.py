"""Saving and going on through real engines: what is kept, what is refused, and that nothing is lost on the way."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from scaletrain.checkpoint.layout import list_checkpoints, partial_name
from tests.distributed import run_on_ranks
from tests.engine.bodies import Case
from tests.training import bodies
from tests.training.bodies import Job


def names(folder: Path) -> list[str]:
    return [checkpoint.name for checkpoint in list_checkpoints(folder / "checkpoints")]


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_weights_of_a_checkpoint_are_the_live_models(stage: int, tied: bool, tmp_path: Path) -> None:
    case = Case(stage=stage, model={"tie_embeddings": tied})
    assert run_on_ranks(2, bodies.train_and_compare_weights, Job(str(tmp_path), case)) == [[], []]


def test_a_run_goes_on_where_it_was_saved_with_its_callbacks_states(tmp_path: Path) -> None:
    job = Job(str(tmp_path / "cut"), Case(stage=1, model={"dropout": 0.1}), max_steps=4)
    uncut = run_on_ranks(2, bodies.start, replace(job, folder=str(tmp_path / "uncut"), max_steps=7))[0]
    first = run_on_ranks(2, bodies.start, job)[0]
    second = run_on_ranks(2, bodies.start, replace(job, max_steps=7))[0]
    assert (second["begun_at"], second["seen_steps"]) == (4, 7)
    assert first["losses"] + second["losses"] == uncut["losses"]
    assert second["state"] == uncut["state"]
    assert names(tmp_path / "cut") == names(tmp_path / "uncut") == ["step_00000007", "step_00000006"]
    newest = tmp_path / "cut" / "checkpoints" / "step_00000007"
    assert bodies.saved_state(newest)["training"] == second["state"]
    assert (newest / "config.yaml").read_text() == "resolved: true\n"


def test_a_damaged_checkpoint_is_passed_over_by_all_ranks_and_later_replaced(tmp_path: Path) -> None:
    job = Job(str(tmp_path), max_steps=4, keep_last=1)
    whole = replace(job, folder=str(tmp_path / "whole"), max_steps=6)
    expected = run_on_ranks(2, bodies.start, whole)[0]
    run_on_ranks(2, bodies.start, replace(job, keep_last=2))
    assert names(tmp_path) == ["step_00000004", "step_00000002"]
    flip_a_bit(tmp_path / "checkpoints" / "step_00000004" / "mp_rank_00_model_states.pt")
    # What a killed run left half written is cleared away, too.
    (tmp_path / "checkpoints" / partial_name(5)).mkdir()
    results = run_on_ranks(2, bodies.start, replace(job, max_steps=6))
    assert [result["begun_at"] for result in results] == [2, 2]
    assert results[0]["losses"] == expected["losses"][2:]
    assert names(tmp_path) == ["step_00000006"]
    assert not (tmp_path / "checkpoints" / partial_name(5)).exists()


def test_without_an_intact_checkpoint_all_ranks_say_so(tmp_path: Path) -> None:
    job = Job(str(tmp_path), max_steps=2)
    run_on_ranks(2, bodies.start, job)
    os.truncate(tmp_path / "checkpoints" / "step_00000002" / "state.json", 10)
    with pytest.raises(
        AssertionError,
        match=r"(?s)CheckpointError: .*none can be loaded.*step_00000002: state.json has 10.*Restore one",
    ):
        run_on_ranks(2, bodies.start, job)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    job = Job(str(tmp_path), max_steps=2)
    run_on_ranks(1, bodies.start, job)
    with pytest.raises(AssertionError, match=r"checkpoint is of another model.*embedding.*Use another run_dir"):
        run_on_ranks(1, bodies.start, replace(job, case=Case(model={"d_model": 36})))
