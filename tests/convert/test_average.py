"""The mean of checkpoints, and what a start is good for."""

import math
import shutil
from pathlib import Path

import pytest
import torch

from scaletrain.checkpoint.layout import list_checkpoints
from scaletrain.checkpoint.weights import load_weights
from scaletrain.convert.average import average
from scaletrain.convert.checkpoint_tensors import CheckpointTensors, find_checkpoint
from scaletrain.errors import CheckpointError, ConfigError
from tests.convert import saving_bodies
from tests.distributed import run_on_ranks
from tests.engine.bodies import Case


def saved(folder: Path, case: Case, world_size: int, steps: int) -> Path:
    run_on_ranks(world_size, saving_bodies.train_and_save, case, str(folder), steps)
    return list_checkpoints(folder / "checkpoints")[0]


@pytest.mark.thorough
def test_it_is_the_mean_of_what_each_run_would_load(tmp_path: Path) -> None:
    first = saved(tmp_path / "a", Case(stage=3), 2, 2)
    second = saved(tmp_path / "b", Case(stage=1, precision="bf16"), 1, 4)
    average([first, second], tmp_path / "mean", [3.0, 1.0], processes=2)
    one, other = (load_weights(tmp_path / name / "checkpoints") for name in "ab")
    mean = load_weights(tmp_path / "mean" / "checkpoints")
    for name, weight in mean.items():
        expected = (0.75 * one[name].double() + 0.25 * other[name].double()).float()
        assert torch.equal(weight, expected)
    assert any(not torch.equal(one[name], other[name]) for name in mean)
    # A mean can be averaged again.
    average([find_checkpoint(tmp_path / "mean"), first], tmp_path / "again")


@pytest.mark.slow
def test_checkpoints_of_other_models_have_no_mean(tmp_path: Path) -> None:
    first = saved(tmp_path / "a", Case(stage=1), 1, 1)
    second = saved(tmp_path / "b", Case(stage=1, model={"tie_embeddings": False}), 1, 1)
    with pytest.raises(CheckpointError, match=r"different models: output.weight: None and"):
        average([first, second], tmp_path / "mean")
    with pytest.raises(ConfigError, match="give two or more"):
        average([first], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


@pytest.mark.slow
def test_a_start_says_that_it_was_damaged(tmp_path: Path) -> None:
    folders = [saved(tmp_path / name, Case(stage=1), 1, 1) for name in "ab"]
    average(folders, tmp_path / "mean")
    checkpoint = find_checkpoint(tmp_path / "mean")
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=r"model.safetensors has \d+ bytes instead of"):
        CheckpointTensors(checkpoint)


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Checkpoints of runs that differ in dropout alone."""
    folder = tmp_path_factory.mktemp("runs")
    return [saved(folder / str(share), Case(stage=1, model={"dropout": share}), 1, 1) for share in (0.0, 0.5)]


def test_runs_that_differ_in_training_alone_have_a_mean(two_runs: list[Path], tmp_path: Path) -> None:
    average(two_runs, tmp_path / "mean")
    assert CheckpointTensors(find_checkpoint(tmp_path / "mean")).config.dropout == 0


@pytest.mark.parametrize("weights", [[math.inf, 1.0], [1e308, 1e308], [0.0, 0.0], [-1.0, 2.0], [math.nan, 1.0]])
def test_weights_of_no_mean_are_refused(two_runs: list[Path], tmp_path: Path, weights: list[float]) -> None:
    with pytest.raises(ConfigError, match="give finite numbers above 0"):
        average(two_runs, tmp_path / "mean", weights)
    assert not (tmp_path / "mean").exists()


def test_runs_of_two_tokenizers_have_no_mean(two_runs: list[Path], tmp_path: Path) -> None:
    copies = []
    for number, checkpoint in enumerate(two_runs):
        run_dir = shutil.copytree(checkpoint.parent.parent, tmp_path / f"run_{number}")
        (run_dir / "tokenizer.json").write_text(f'{{"number": {number}}}')
        copies.append(list_checkpoints(run_dir / "checkpoints")[0])
    with pytest.raises(ConfigError, match="average runs of one tokenizer"):
        average(copies, tmp_path / "mean")
    (tmp_path / "run_1" / "tokenizer.json").write_text('{"number": 0}')
    average(copies, tmp_path / "mean")
    assert (tmp_path / "mean" / "tokenizer.json").read_text() == '{"number": 0}'
