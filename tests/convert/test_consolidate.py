"""The weights of a checkpoint, however it is laid out, come out as one file, bit for bit."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from scaletrain.checkpoint.layout import list_checkpoints
from scaletrain.checkpoint.weights import load_weights
from scaletrain.convert.checkpoint_tensors import CheckpointTensors
from scaletrain.convert.consolidate import consolidate
from scaletrain.convert.from_hf import from_hf
from scaletrain.convert.tensors import DTYPES
from scaletrain.convert.to_hf import to_hf
from scaletrain.errors import CheckpointError, ScaletrainError
from tests.convert import saving_bodies
from tests.distributed import run_on_ranks
from tests.engine.bodies import Case

UNTIED = {"tie_embeddings": False}
TIED = {"output.weight": "embedding.weight"}


def saved(tmp_path: Path, case: Case, world_size: int) -> Path:
    run_on_ranks(world_size, saving_bodies.train_and_save, case, str(tmp_path), 2)
    return list_checkpoints(tmp_path / "checkpoints")[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "world_size"),
    [
        (Case(stage=0), 2),
        (Case(stage=1, model=UNTIED), 2),
        (Case(stage=2, offload="optimizer"), 2),
        (Case(stage=3), 4),
        (Case(stage=3, offload="optimizer", model=UNTIED), 2),
        pytest.param(Case(stage=0, model=UNTIED), 1, marks=pytest.mark.thorough),
        pytest.param(Case(stage=1), 4, marks=pytest.mark.thorough),
        pytest.param(Case(stage=2, model=UNTIED), 4, marks=pytest.mark.thorough),
        pytest.param(Case(stage=2, offload="optimizer", model=UNTIED), 4, marks=pytest.mark.thorough),
        pytest.param(Case(stage=3, offload="all"), 1, marks=pytest.mark.thorough),
    ],
    ids=str,
)
def test_files_and_folders_hold_the_live_models_weights(case: Case, world_size: int, tmp_path: Path) -> None:
    ranks = run_on_ranks(world_size, saving_bodies.train_and_save, case, str(tmp_path), 2)
    checkpoint = list_checkpoints(tmp_path / "checkpoints")[0]
    consolidate(checkpoint, tmp_path / "weights.safetensors")
    written = load_file(tmp_path / "weights.safetensors")
    tied = {} if case.model else TIED
    with safe_open(tmp_path / "weights.safetensors", "pt") as file:
        assert json.loads(file.metadata()["tied"]) == tied
    assert not tied.keys() & written.keys()
    written |= {name: written[saved_as] for name, saved_as in tied.items()}
    expected = load_weights(tmp_path / "checkpoints")
    assert written.keys() == expected.keys()
    assert [name for name, weight in expected.items() if not same_bits(written[name], weight)] == []
    to_hf(CheckpointTensors(checkpoint), tmp_path / "hf", proves=True)
    from_hf(tmp_path / "hf", tmp_path / "start")
    returned = load_weights(tmp_path / "start" / "checkpoints")
    assert returned.keys() == expected.keys()
    assert [name for name, weight in expected.items() if not same_bits(returned[name], weight)] == []
    for live in ranks:
        assert live.keys() == expected.keys()
        assert [name for name, weight in live.items() if not same_bits(written[name], torch.from_numpy(weight))] == []


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.numpy().tobytes() == other.numpy().tobytes()


@pytest.mark.thorough
def test_weights_are_rounded_as_torch_rounds_them(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, Case(stage=3, precision="bf16"), 2)
    exact = load_weights(tmp_path / "checkpoints")
    for dtype in ("bf16", "fp16"):
        consolidate(checkpoint, tmp_path / f"{dtype}.safetensors", dtype, processes=2)
        written = load_file(tmp_path / f"{dtype}.safetensors")
        for name, weight in written.items():
            assert weight.dtype == DTYPES[dtype] and weight.equal(exact[name].to(weight.dtype))


def test_a_file_that_is_there_stays(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, Case(stage=1), 1)
    out = tmp_path / "weights.safetensors"
    out.write_text("precious")
    with pytest.raises(ScaletrainError, match=r"weights\.safetensors"):
        consolidate(checkpoint, out)
    assert out.read_text() == "precious"


def test_a_torn_checkpoint_leaves_nothing(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, Case(stage=3), 2)
    victim = max(checkpoint.glob("*rank_1*optim_states.pt"), key=lambda path: path.stat().st_size)
    os.truncate(victim, victim.stat().st_size // 2)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match=victim.name):
        consolidate(checkpoint, tmp_path / "weights.safetensors")
    assert sorted(tmp_path.iterdir()) == before
