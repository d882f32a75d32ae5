"""Whole runs that train adapters of another run's model, cut and gone on with, and what comes out of them."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from scaletrain.checkpoint.weights import load_weights, read_weights
from scaletrain.convert.adapter_export import export_adapter
from scaletrain.convert.checkpoint_tensors import CheckpointTensors, find_checkpoint
from scaletrain.convert.to_hf import to_hf
from tests.training.data_runs import DataRun
from tests.training.mishaps import Mishap

LEARNS = {"train.max_steps": 4, "checkpoint.every_steps": 2, "optim.lr": 1e-2, "train.batch_schedule": "[]"}
ADAPTS = LEARNS | {
    "lora.rank": 3,
    "lora.targets": "[q, v, up]",
    "lora.dropout": 0.1,
    "optim.ema_decay": 0.5,
    "tune.layer_decay": 0.8,
    "eval.every_steps": 2,
}


@pytest.fixture(scope="module")
def pretrained(corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> DataRun:
    run = DataRun(tmp_path_factory.mktemp("pretrained"), corpora, LEARNS)
    run.complete(2)
    return run


@pytest.fixture(scope="module")
def adapted(pretrained: DataRun, corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> DataRun:
    run = DataRun(tmp_path_factory.mktemp("adapted"), corpora, ADAPTS | {"init": pretrained.run_dir})
    run.complete(2)
    return run


def newest(run: DataRun) -> Path:
    return find_checkpoint(run.run_dir)


def test_it_begins_as_the_model_that_it_adapts_and_says_what_is_new(pretrained: DataRun, adapted: DataRun) -> None:
    (event,) = adapted.events("init")
    (told,) = event["fit"]
    assert "blocks.0.attention.q.lora_A.weight" in told and told.endswith("begin at their initial values")
    assert adapted.rows[0]["train/loss"] < math.log(320) - 0.2
    before, after = read_weights(newest(pretrained)), read_weights(newest(adapted))
    assert all(after[name].equal(weight) for name, weight in before.items())
    assert after["blocks.0.attention.q.lora_B.weight"].any()


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_a_cut_run_goes_on_bit_for_bit(
    pretrained: DataRun, adapted: DataRun, corpora: Path, tmp_path: Path, stage: int
) -> None:
    given = ADAPTS | {"init": pretrained.run_dir, "deepspeed": f"configs/ds/zero{stage}.json"}
    uncut = adapted
    if stage == 3:
        (tmp_path / "uncut").mkdir()
        uncut = DataRun(tmp_path / "uncut", corpora, given)
        uncut.complete(2)
        assert [row["train/loss"] for row in uncut.rows] == pytest.approx(
            [row["train/loss"] for row in adapted.rows], abs=1e-5
        )
    run = DataRun(tmp_path, corpora, given)
    assert run.start(2, mishap=Mishap(kill_at=2)) == ("requeue", "requeue")
    run.complete(2)
    for name in ("train/loss", "train/grad_norm", "eval/loss", "eval/gap"):
        assert [row.get(name) for row in run.rows] == [row.get(name) for row in uncut.rows]
    one, other = (read_weights(newest(each)) for each in (run, uncut))
    assert all(one[name].equal(weight) for name, weight in other.items())


def test_what_was_trained_goes_out_alone_merged_and_as_its_average(adapted: DataRun, tmp_path: Path) -> None:
    checkpoint = CheckpointTensors(newest(adapted))
    export_adapter(checkpoint, tmp_path / "adapter")
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["modules_to_save"] is None
    assert {name.rsplit(".", 2)[1] for name in tensors} == {"lora_A", "lora_B"}
    to_hf(checkpoint, tmp_path / "hf")
    merged = load_weights(adapted.run_dir / "checkpoints")
    name = "blocks.0.feed_forward.up.weight"
    theirs = load_file(tmp_path / "hf" / "model.safetensors")["transformer.h.0.mlp.c_fc.weight"].T
    torch.testing.assert_close(theirs, merged[name], rtol=1e-6, atol=1e-7)
    average = CheckpointTensors(newest(adapted), kind="ema")
    numel = merged[name].numel()
    assert not average.read(name, 0, numel).equal(checkpoint.read(name, 0, numel))
    a_RI, b_OR = average.factors("blocks.0.feed_forward.up")
    base = read_weights(newest(adapted))[name]
    scale = average.lora.alpha / average.lora.rank
    torch.testing.assert_close(
        average.read(name, 0, numel), (base + scale * b_OR @ a_RI).flatten(), rtol=1e-6, atol=1e-7
    )


def test_a_run_can_begin_with_what_was_merged_and_not_with_half_of_it(
    adapted: DataRun, corpora: Path, tmp_path: Path
) -> None:
    (told, _) = DataRun(tmp_path, corpora, LEARNS | {"init": adapted.run_dir}).start(2)
    assert told.startswith("CheckpointError: init: ") and "merge its adapters first" in told
