"""What fields may be together, and what a DeepSpeed file may hold."""

import json
from pathlib import Path

import pytest

from scaletrain.config.derive import (
    check,
    deepspeed_conflicts,
    effective_decay_steps,
    load_deepspeed_json,
    offloads_optimizer,
    offloads_parameters,
    zero_stage,
)
from scaletrain.config.files import configs_dir
from scaletrain.config.load import load_config
from scaletrain.errors import ConfigError


def told(**overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        check(load_config(None, {key.replace("__", "."): text for key, text in overrides.items()}))
    return str(caught.value)


def accepted(**overrides: str) -> None:
    check(load_config(None, {key.replace("__", "."): text for key, text in overrides.items()}))


def test_the_default_can_be_run() -> None:
    accepted()


def test_micro_batch_in_global_batch() -> None:
    text = told(train__micro_batch_size="16", train__global_batch_size="8")
    assert "train.micro_batch_size = 16" in text and "train.global_batch_size = 8" in text
    accepted(train__micro_batch_size="8", train__global_batch_size="8")


def test_sequences_fit_learned_positions_only() -> None:
    longer = {"train__max_seq_len": "2048", "model__max_seq_len": "1024"}
    assert "train.max_seq_len = 2048" in told(**longer, model__positions="learned")
    accepted(**longer, model__positions="rotary")
    accepted(**longer, model__positions="sinusoidal")


def test_heads() -> None:
    assert "model.n_kv_heads = 3" in told(model__n_heads="4", model__n_kv_heads="3")
    accepted(model__n_heads="4", model__n_kv_heads="2")
    odd = {"model__head_dim": "15"}
    assert "model.head_dim = 15 is odd" in told(**odd, model__positions="rotary")
    accepted(**odd, model__positions="learned")


def test_one_source_of_data() -> None:
    assert "nothing to train on" in told(data__corpus="none")
    assert "--data.corpus none" in told(data__manifest="m.json")
    accepted(data__manifest="m.json", data__corpus="none")


def test_the_schedule_has_steps_to_decay_in() -> None:
    assert "train.max_steps = 10" in told(train__max_steps="10", optim__warmup_steps="10")
    assert "optim.decay_steps = 50" in told(optim__decay_steps="50", optim__warmup_steps="60")
    accepted(train__max_steps="10", optim__warmup_steps="10", optim__schedule="constant")
    config = load_config(None, {"train.max_steps": "70"})
    assert effective_decay_steps(config.optim, 70) == 70
    assert effective_decay_steps(load_config(None, {"optim.decay_steps": "60"}).optim, 70) == 60


def test_a_range_test_grows_from_a_rate() -> None:
    assert "optim.min_lr_ratio = 0" in told(optim__schedule="range_test", optim__min_lr_ratio="0")
    accepted(optim__schedule="range_test", optim__min_lr_ratio="1e-8", optim__warmup_steps="0")


def test_none_or_some_checkpoints() -> None:
    text = told(checkpoint__keep_last="0", checkpoint__keep_best="true", checkpoint__every_steps="70")
    assert "checkpoint.every_steps = 70 asks" in text and "checkpoint.keep_best = True asks" in text
    accepted(checkpoint__keep_last="0", checkpoint__every_steps="0")


def test_all_is_told_at_once() -> None:
    text = told(data__corpus="none", train__micro_batch_size="99", deepspeed="no.json", optim__warmup_steps="1000")
    assert text.startswith("4 problems") and "'no.json' does not exist" in text


@pytest.mark.parametrize("path", sorted((configs_dir() / "ds").glob("*.json")), ids=lambda path: path.stem)
def test_shipped_files_are_what_their_names_say(path: Path) -> None:
    ds = load_deepspeed_json(path)
    assert zero_stage(ds) == int(path.stem[4])
    assert offloads_optimizer(ds) == path.stem.endswith("offload")
    assert offloads_parameters(ds) == (path.stem == "zero3_offload")
    accepted(deepspeed=str(path))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"train_batch_size": 8}, ["train_batch_size", "train.global_batch_size"]),
        ({"train_micro_batch_size_per_gpu": 8}, ["train.micro_batch_size"]),
        ({"gradient_accumulation_steps": 8}, ["derived"]),
        ({"bf16": {"enabled": True}}, ["bf16", "train.precision"]),
        ({"fp16": {"enabled": False}}, ["fp16", "train.precision"]),
        ({"optimizer": {"type": "Adam"}, "scheduler": {}}, ["optim.lr", "optim.schedule"]),
        ({"gradient_clipping": 1.0}, ["optim.grad_clip"]),
        ({"zero_optimisation": {"stage": 2}}, ["zero_optimization"]),
        ({"zero_optimization": {"stage": 4}}, ["stage = 4", "0, 1, 2 or 3"]),
        ({"zero_optimization": {"stage": "2"}}, ["stage = '2'"]),
        ({"zero_optimization": 2}, ["must be an object"]),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "gpu"}}}, ["'gpu'", "cpu"]),
        ({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, ["no effect at stage 0"]),
    ],
)
def test_what_cannot_stand_there_names_its_owner(tmp_path: Path, content: dict[str, object], words: list[str]) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(content))
    text = told(deepspeed=str(path))
    for word in [str(path), *words]:
        assert word in text


def test_settings_of_deepspeed_that_are_not_known_here_pass() -> None:
    assert deepspeed_conflicts({"zero_optimization": {"stage": 1}, "elasticity": {}, "new_feature": 1}) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{\n"zero_optimization": {,}\n}', "line 2 is not valid JSON"),
        ("[1]", "must hold a JSON object"),
        ('{"zero_optimization": {"stage": 1, "stage": 2}}', "stage given twice"),
        ("", "line 1 is not valid JSON"),
    ],
)
def test_json_that_cannot_be_read(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "ds.json"
    path.write_text(text)
    assert words in told(deepspeed=str(path))


def test_a_model_that_fits_its_task() -> None:
    pairs = {"task__name": "seq2seq", "data__packing": "document"}
    accepted(**pairs, model__n_encoder_layers="2")
    accepted(**pairs, model__n_encoder_layers="2", model__kind="lstm")
    assert "reads the source with an encoder, but model.n_encoder_layers is 0" in told(**pairs)
    assert "model.n_encoder_layers = 2 reads a source" in told(model__n_encoder_layers="2")
    assert "model.kind cnn tells classes or values alone" in told(model__kind="cnn")
    labelled = {"task__name": "regression", "data__packing": "document", "eval__prompts": "[]"}
    accepted(**labelled, model__kind="cnn", model__n_classes="1")


def test_baselines_have_neither_learned_positions_nor_layers_to_recompute() -> None:
    accepted(model__kind="lstm", train__max_seq_len="2048", model__max_seq_len="1024")
    checkpointing = {"train__activation_checkpointing": "true"}
    assert "train.activation_checkpointing recomputes the layers" in told(model__kind="lstm", **checkpointing)
    accepted(**checkpointing)


def test_prometheus_gets_something_to_do_and_somebody_to_do_it() -> None:
    assert "add prometheus to log.writers" in told(log__prometheus_textfile="run.prom")
    chosen = {"log__writers": "[prometheus]"}
    assert "log.prometheus_port = none leaves" in told(**chosen, log__prometheus_port="none")
    assert "run.txt must end in .prom" in told(**chosen, log__prometheus_textfile="run.txt")
    assert "70000" in told(log__prometheus_port="70000")
    accepted(**chosen)
    accepted(**chosen, log__prometheus_port="none", log__prometheus_textfile="run.prom")
