"""What is wrong with a Hugging Face folder or a checkpoint is told, whatever it is."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from scaletrain.config.schema import ModelConfig
from scaletrain.convert.checkpoint_tensors import CheckpointTensors, find_checkpoint
from scaletrain.convert.from_hf import from_hf, look_into
from scaletrain.convert.inspection import inspect
from scaletrain.convert.registry import family_for
from scaletrain.convert.safetensors_files import SafetensorsFolder
from scaletrain.convert.to_hf import to_hf
from scaletrain.errors import CheckpointError, ConfigError
from tests.convert.tiny_models import save


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save("llama", tmp_path / "there")
    return tmp_path / "there"


def change_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("vocab_size", "many", "vocab_size would be many"),
        ("vocab_size", 0, "vocab_size would be 0"),
        ("hidden_size", None, "d_model would be None"),
        ("num_attention_heads", 0, "describes no model"),
        ("num_hidden_layers", [3], r"n_layers would be \[3\]"),
        ("hidden_act", ["silu"], "hidden_act"),
        ("rope_parameters", "linear", "describes no model"),
        ("rope_parameters", {"rope_type": "linear"}, "describes no model: KeyError: 'factor'"),
        ("rope_parameters", {"rope_type": "llama3", "factor": 2}, "describes no model: KeyError"),
        ("architectures", "LlamaForCausalLM", "architecture LlamaForCausalLM"),
    ],
)
def test_a_config_of_no_model_is_told(folder: Path, key: str, value: Any, message: str) -> None:
    change_config(folder, **{key: value})
    with pytest.raises(ConfigError, match=message):
        look_into(folder)


def test_more_layers_than_weights_are_told_at_once(folder: Path) -> None:
    change_config(folder, num_hidden_layers=10**9)
    with pytest.raises(CheckpointError, match="asks for 1000000000 layers"):
        look_into(folder)


@pytest.mark.parametrize("eos", [[], -1, 10**12, "end", ["end"], {}, 1.5])
def test_an_end_that_is_no_token_is_none(folder: Path, tmp_path: Path, eos: Any) -> None:
    change_config(folder, eos_token_id=eos)
    from_hf(folder, tmp_path / "start")
    assert (tmp_path / "start" / "tokenizer.json").is_file()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "model.safetensors"])
def test_nested_beyond_all_measure_is_no_file(folder: Path, name: str) -> None:
    content = b"[" * 100_000
    (folder / name).write_bytes(len(content).to_bytes(8, "little") * (name == "model.safetensors") + content)
    with pytest.raises((CheckpointError, ConfigError), match=name):
        look_into(folder)
    with pytest.raises((CheckpointError, ConfigError), match=name):
        inspect(folder)


def change_header(folder: Path, **entries: Any) -> None:
    content = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + length]) | entries).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])


def test_a_header_with_wrong_types_is_read_or_told(folder: Path) -> None:
    for metadata in ("pt", None, 5):
        change_header(folder, __metadata__=metadata)
        assert SafetensorsFolder(folder).metadata == {}
    change_header(folder, x={"dtype": "F32", "shape": [math.inf], "data_offsets": [0, 4]})
    with pytest.raises(CheckpointError, match="what it says of x cannot be read"):
        SafetensorsFolder(folder)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool])
def test_whole_numbers_are_no_weights(folder: Path, dtype: torch.dtype) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({name: weight.to(dtype) for name, weight in weights.items()}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lm_head.weight is stored as .*quantized weights are not converted"):
        look_into(folder)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda weights: {7: torch.zeros(2), **weights}, "other things than plain tensors"),
        (lambda weights: {**weights, "model.norm.weight": torch.ones(48).to_sparse()}, "other things than plain"),
        (lambda weights: {name: weight.to(torch.complex64) for name, weight in weights.items()}, "stored as complex64"),
        (lambda weights: {name: weight.to(torch.float8_e5m2) for name, weight in weights.items()}, "as float8_e5m2"),
    ],
)
def test_a_pickled_file_of_other_things_is_told(
    folder: Path, spoil: Callable[[dict[str, torch.Tensor]], dict[Any, torch.Tensor]], message: str
) -> None:
    torch.save(spoil(load_file(folder / "model.safetensors")), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=message):
        look_into(folder)


def test_a_model_that_a_family_cannot_even_divide_is_told() -> None:
    with pytest.raises(ConfigError, match="gpt_neox: d_model = 4 with n_heads = 8"):
        family_for(ModelConfig(d_model=4, n_heads=8, head_dim=16, positions="rotary"))


def test_a_damaged_provenance_is_told(folder: Path, tmp_path: Path) -> None:
    from_hf(folder, tmp_path / "start")
    (tmp_path / "start" / "provenance.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"provenance.json cannot be read.*delete it"):
        to_hf(CheckpointTensors(find_checkpoint(tmp_path / "start")), tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_checkpoint_finds_its_tokenizer_however_it_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from_hf(folder, tmp_path / "start")
    checkpoint = find_checkpoint(tmp_path / "start")
    (tmp_path / "link").symlink_to(checkpoint)
    monkeypatch.chdir(checkpoint)
    for number, place in enumerate((Path(), Path("../step_00000000"), tmp_path / "link")):
        to_hf(CheckpointTensors(find_checkpoint(place)), tmp_path / f"back{number}")
        assert (tmp_path / f"back{number}" / "tokenizer.json").is_file()


def test_another_step_than_that_of_the_checkpoint_is_told(folder: Path, tmp_path: Path) -> None:
    from_hf(folder, tmp_path / "start")
    checkpoint = find_checkpoint(tmp_path / "start")
    assert find_checkpoint(checkpoint, 0) == checkpoint
    with pytest.raises(CheckpointError, match="is one checkpoint, and not that of --step 7"):
        find_checkpoint(checkpoint, 7)


def test_all_of_a_foreign_description_is_shown(folder: Path) -> None:
    told = "\n".join(inspect(folder).lines())
    assert "hidden_size 48" in told and "num_hidden_layers 3" in told
