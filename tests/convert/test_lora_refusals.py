"""Adapters that are no plain sum, do not fit, or are damaged: each is refused by name, and nothing is left."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
)

from scaletrain.convert.lora import merge_lora
from scaletrain.errors import CheckpointError, ConfigError
from tests.convert.lora_models import LLAMA_TIED, cast, edit, save_adapter, save_source

REFUSED = {
    "use_dora": True,
    "target_parameters": ["q_proj.weight"],
    "layer_replication": [[0, 2]],
    "trainable_token_indices": [1],
    "alora_invocation_tokens": [1],
    "kasa_config": {"beta": 1e-4},
    "init_lora_weights": "pissa_niter_4",
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_is_no_sum_is_refused_by_name(llama: tuple[Path, Path], adapter: Path, tmp_path: Path, key: str) -> None:
    edit(adapter / "adapter_config.json", **{key: REFUSED[key]})
    with pytest.raises(ConfigError, match=f"cannot be merged here:\n  {key}: "):
        merge_lora(llama[0], adapter, tmp_path / "out", None, 1)
    assert not (tmp_path / "out").exists()


def test_another_kind_of_adapter_is_refused(llama: tuple[Path, Path], adapter: Path, tmp_path: Path) -> None:
    edit(adapter / "adapter_config.json", peft_type="LOHA")
    with pytest.raises(ConfigError, match="peft_type LOHA is no LoRA"):
        merge_lora(llama[0], adapter, tmp_path / "out", None, 1)


def test_unknown_tensors_are_refused(llama: tuple[Path, Path], adapter: Path, tmp_path: Path) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    vector = "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector"
    save_file(tensors | {vector: torch.ones(24)}, adapter / "adapter_model.safetensors")
    with pytest.raises(ConfigError, match=rf"cannot be merged into weights:\n  {vector}"):
        merge_lora(llama[0], adapter, tmp_path / "out", None, 1)


def test_all_missing_names_are_told(llama: tuple[Path, Path], adapter: Path, tmp_path: Path) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    renamed = {name.replace(".0.self_attn.", ".7.self_attn."): tensor for name, tensor in tensors.items()}
    save_file(renamed | {"base_model.model.score.weight": torch.ones(2, 24)}, adapter / "adapter_model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        merge_lora(llama[0], adapter, tmp_path / "out", None, 1)
    missing = {f"model.layers.7.self_attn.{part}_proj.weight" for part in "qkvo"} | {"score.weight"}
    assert {line.strip() for line in str(caught.value).splitlines()[1:]} == missing
    assert "lacks 5 of the tensors" in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_one_use_of_a_tied_tensor_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    source = save_source(tmp_path / "source", AutoModelForCausalLM, LLAMA_TIED)
    adapter = save_adapter(tmp_path / "adapter", source, AutoModelForCausalLM, **options)
    with pytest.raises(ConfigError, match=r"are one tensor .* changes one of its two uses: "):
        merge_lora(source, adapter, tmp_path / "out", None, 1)


def test_a_tied_tensor_that_is_replaced_as_a_whole_is_taken(tmp_path: Path) -> None:
    source = save_source(tmp_path / "source", AutoModelForCausalLM, LLAMA_TIED)
    adapter = save_adapter(tmp_path / "adapter", source, AutoModelForCausalLM, target_modules=["q_proj"])
    new = torch.randn(101, 24)
    keys = ("model.embed_tokens", "lm_head")
    path = adapter / "adapter_model.safetensors"
    save_file(load_file(path) | {f"base_model.model.{key}.weight": new.clone() for key in keys}, path)
    merge_lora(source, adapter, tmp_path / "out", None, 1)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert merged.lm_head.weight.equal(new) and merged.model.embed_tokens.weight.equal(new)
    tensors = load_file(path)
    tensors["base_model.model.lm_head.weight"][5, 5] += 1
    save_file(tensors, path)
    with pytest.raises(ConfigError, match="are one tensor"):
        merge_lora(source, adapter, tmp_path / "other", None, 1)


def spoil_rank(adapter: Path) -> None:
    edit(adapter / "adapter_config.json", r=4)


def spoil_numbers(adapter: Path) -> None:
    cast(adapter, lambda tensor: tensor.index_fill(0, torch.tensor([1]), torch.nan))


def spoil_shape(adapter: Path) -> None:
    cast(adapter, lambda tensor: torch.cat([tensor, tensor[:, :1]], 1) if tensor.shape[0] == 3 else tensor)


def spoil_pair(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    save_file({name: t for name, t in load_file(path).items() if "0.self_attn.q_proj.lora_B" not in name}, path)


def spoil_config(adapter: Path) -> None:
    (adapter / "adapter_config.json").write_text("{")


def spoil_pattern(adapter: Path) -> None:
    edit(adapter / "adapter_config.json", rank_pattern={"(": 3})


def spoil_file(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()


SPOILS: Mapping[Any, tuple[type[Exception], str]] = {
    spoil_rank: (CheckpointError, "has rank 3 and 3 in its file, 4 in adapter_config.json"),
    spoil_numbers: (CheckpointError, "holds NaN or infinity"),
    spoil_shape: (CheckpointError, r"is \[24, 40\] in the source, but the adapter was trained on \[24, 41\]"),
    spoil_pair: (CheckpointError, r"0\.self_attn\.q_proj has A\.weight; it must have A\.weight and B\.weight"),
    spoil_config: (CheckpointError, r"adapter_config\.json cannot be read"),
    spoil_pattern: (ConfigError, r"rank_pattern: \( is no regular expression"),
    spoil_file: (CheckpointError, r"holds neither adapter_model\.safetensors nor"),
}


@pytest.mark.parametrize("spoil", SPOILS)
def test_a_damaged_adapter_is_refused(llama: tuple[Path, Path], adapter: Path, tmp_path: Path, spoil: Any) -> None:
    spoil(adapter)
    kind, message = SPOILS[spoil]
    with pytest.raises(kind, match=message):
        merge_lora(llama[0], adapter, tmp_path / "out", None, 1)
    assert not (tmp_path / "out").exists()


def test_a_quantised_model_is_refused(llama: tuple[Path, Path], tmp_path: Path) -> None:
    source = shutil.copytree(llama[0], tmp_path / "source")
    edit(source / "config.json", quantization_config={"quant_method": "fp8"})
    with pytest.raises(ConfigError, match="has a quantization_config"):
        merge_lora(source, llama[1], tmp_path / "out", None, 1)
