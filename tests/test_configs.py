"""Every configuration that ships can be used."""

import json
from pathlib import Path

import pytest
import yaml

from scaletrain.config.load import load_config
from scaletrain.config.schema import ModelConfig
from scaletrain.corpus.rules import load_rules

CONFIGS = Path(__file__).parents[1] / "configs"
RUNS = sorted([*CONFIGS.glob("*.yaml"), *CONFIGS.glob("pretrain/*.yaml"), *CONFIGS.glob("finetune/*.yaml")])
PRESETS = sorted(CONFIGS.glob("model/*.yaml"))
DEEPSPEED = sorted(CONFIGS.glob("ds/*.json"))
CORPUS = sorted(CONFIGS.glob("corpus/*.yaml"))
CHAT = sorted(CONFIGS.glob("chat/*.jinja"))  # tests/data/test_chat.py renders with each

# What the run's own configuration decides; in one of DeepSpeed's files it would say it a second time.
OWNED_BY_THE_RUN = {
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "optimizer",
    "scheduler",
    "bf16",
    "fp16",
}


def relative(path: Path) -> str:
    return str(path.relative_to(CONFIGS))


def test_there_are_configurations_and_no_other_files() -> None:
    assert RUNS and PRESETS and DEEPSPEED
    assert {path for path in CONFIGS.rglob("*") if path.is_file()} == {*RUNS, *PRESETS, *DEEPSPEED, *CORPUS, *CHAT}


@pytest.mark.parametrize("path", RUNS, ids=relative)
def test_a_run_loads(path: Path) -> None:
    config = load_config(path, {})
    assert config.run_dir == Path("runs") / path.stem
    assert (CONFIGS.parent / config.deepspeed).is_file()


@pytest.mark.parametrize("path", PRESETS, ids=relative)
def test_a_preset_is_a_whole_model_and_can_be_named(path: Path) -> None:
    values = yaml.safe_load(path.read_text())
    model = load_config(None, {"model.preset": path.stem}).model
    assert model == ModelConfig(**values, preset=path.stem)
    assert {"vocab_size", "d_model", "n_layers", "n_heads", "max_seq_len"} <= values.keys()


@pytest.mark.parametrize("path", DEEPSPEED, ids=relative)
def test_settings_of_deepspeed_hold_only_what_is_its_own(path: Path) -> None:
    settings = json.loads(path.read_text())
    assert settings["zero_optimization"]["stage"] in (0, 1, 2, 3)
    assert settings.keys() & OWNED_BY_THE_RUN == set()


@pytest.mark.parametrize("path", CORPUS, ids=relative)
def test_rules_for_corpora_load(path: Path) -> None:
    assert load_rules(path).look_at_text
