"""A run's own adapters: merged they compute what it computes, exported they do so on PEFT's side."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from scaletrain.checkpoint.commit import commit
from scaletrain.checkpoint.layout import CONFIG, STATE, folder_name, partial_name
from scaletrain.checkpoint.weights import load_weights
from scaletrain.checkpoint.writing import write_part
from scaletrain.config.load import dump_yaml
from scaletrain.config.schema import LoraConfig, ModelConfig, RunConfig
from scaletrain.convert.adapter_export import export_adapter
from scaletrain.convert.checkpoint_tensors import CheckpointTensors
from scaletrain.convert.lora import open_merged
from scaletrain.convert.merging import merge_run
from scaletrain.convert.to_hf import to_hf
from scaletrain.errors import ConfigError
from scaletrain.model.transformer import Transformer
from scaletrain.model.tuning import prepare
from scaletrain.protocols import FROZEN, Fragment, SavedPart

SHAPE = {"vocab_size": 60, "d_model": 24, "n_layers": 2, "n_heads": 4, "max_seq_len": 16}
LLAMA = SHAPE | {
    "n_kv_heads": 2,
    "positions": "rotary",
    "norm": "rms_norm",
    "activation": "swiglu",
    "bias": False,
    "tie_embeddings": False,
}
NEOX = SHAPE | {"positions": "rotary", "rotary_dim": 2, "parallel_residual": True, "activation": "gelu"}
NEOX |= {"tie_embeddings": False}
CASES = {
    "llama": (LLAMA, {"rank": 3, "alpha": 5.0}),
    "llama, some layers": (LLAMA, {"rank": 2, "targets": ("blocks.0.attention.q", "down")}),
    "gpt2": (SHAPE, {"rank": 3, "alpha": 5.0}),
    "gpt2, joined and not": (SHAPE, {"rank": 2, "targets": ("q", "k", "v", "up", "attention.out")}),
    "gpt_neox": (NEOX, {"rank": 2, "targets": ("k", "v", "down")}),
}
TOKENS_BT = torch.randint(60, (2, 16), generator=torch.Generator().manual_seed(1))
# Sums of 24 to 192 products in fp32; the layers of a product are added in another order.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def save(run_dir: Path, model: Transformer, lora: LoraConfig) -> CheckpointTensors:
    """Writes a run as one rank without ZeRO does."""
    partial, name = run_dir / "checkpoints" / partial_name(5), "mp_rank_00_model_states.pt"
    partial.mkdir(parents=True)
    named = {f"model.{name}": weight for name, weight in model.named_parameters()}
    fragments = [
        Fragment(key, 0, weight.numel(), number if weight.requires_grad else FROZEN, 0)
        for number, (key, weight) in enumerate(named.items())
    ]
    weights = {key: weight.detach() for key, weight in named.items()}
    shapes = {key: list(weight.shape) for key, weight in weights.items()}
    tied = {"model.output.weight": "model.embedding.weight"} if model.config.tie_embeddings else {}
    part = SavedPart({name: {"module": weights}}, name, fragments, {"zero_stage": 0, "shapes": shapes, "tied": tied})
    texts = {STATE: json.dumps({"engine": part.state}), CONFIG: dump_yaml(RunConfig(model=model.config, lora=lora))}
    commit(partial, run_dir / "checkpoints" / folder_name(5), write_part(partial, 0, part, texts))
    return CheckpointTensors(run_dir / "checkpoints" / folder_name(5))


def tuned(fields: dict[str, Any], options: dict[str, Any]) -> tuple[Transformer, Transformer, LoraConfig]:
    """A model, and the same with adapters that do something."""
    from scaletrain.config.schema import TuneConfig

    lora = LoraConfig(**options)
    torch.manual_seed(0)
    base, adapted = (Transformer(ModelConfig(**fields, init_std=0.1)) for _ in range(2))
    adapted.load_state_dict(base.state_dict())
    prepare(adapted, lora, TuneConfig())
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.3)
    return base.eval(), adapted.eval(), lora


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_exported_peft_computes_the_same_on_the_base(case: str, tmp_path: Path) -> None:
    base, adapted, lora = tuned(*CASES[case])
    family = case.split(",")[0]
    to_hf(save(tmp_path / "base", base, LoraConfig()), tmp_path / "hf", model_type=family)
    run = save(tmp_path / "run", adapted, lora)
    export_adapter(run, tmp_path / "adapter", str(tmp_path / "hf"), family)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    expected = adapted(TOKENS_BT)
    assert not theirs(TOKENS_BT).logits.allclose(expected, atol=0.1), "the adapters do something"
    peft = PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    torch.testing.assert_close(peft(TOKENS_BT).logits, expected, **TOLERANCE)
    torch.testing.assert_close(peft.merge_and_unload()(TOKENS_BT).logits, expected, **TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_merged_it_is_the_model_that_was_trained(case: str, tmp_path: Path) -> None:
    _, adapted, lora = tuned(*CASES[case])
    run = save(tmp_path / "run", adapted, lora)
    expected = adapted(TOKENS_BT)
    _, proof = to_hf(run, tmp_path / "merged", model_type=case.split(",")[0], proves=True)
    assert proof is not None
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(theirs(TOKENS_BT).logits, expected, **TOLERANCE)
    merge_run(run, tmp_path / "start")
    for place in ("run", "start"):
        ours = Transformer(ModelConfig(**CASES[case][0]))
        ours.load_state_dict(load_weights(tmp_path / place / "checkpoints"))
        torch.testing.assert_close(ours.eval()(TOKENS_BT), expected, **TOLERANCE)


@torch.no_grad()
def test_the_own_merge_takes_what_was_exported(tmp_path: Path) -> None:
    base, adapted, lora = tuned(*CASES["gpt2, joined and not"])
    to_hf(save(tmp_path / "base", base, LoraConfig()), tmp_path / "hf")
    run = save(tmp_path / "run", adapted, lora)
    export_adapter(run, tmp_path / "adapter")
    to_hf(run, tmp_path / "merged")
    one, other = (
        open_merged(tmp_path / "hf", tmp_path / "adapter"),
        AutoModelForCausalLM.from_pretrained(tmp_path / "merged"),
    )
    there: dict[str, Tensor] = dict(other.state_dict())
    assert one.infos
    for name, info in one.infos.items():
        torch.testing.assert_close(one.read(name, 0, info.numel).view(info.shape), there[name], **TOLERANCE)


def test_a_head_that_was_trained_beside_them_goes_with_them(tmp_path: Path) -> None:
    _, adapted, lora = tuned(LLAMA, {"rank": 2, "also_train": ("output",)})
    export_adapter(save(tmp_path / "run", adapted, lora), tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["lm_head"] and config["target_modules"] == ["q_proj", "v_proj"]
    to_hf(save(tmp_path / "base", adapted_base(adapted), LoraConfig()), tmp_path / "hf")
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "hf"), tmp_path / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(peft(TOKENS_BT).logits, adapted(TOKENS_BT), **TOLERANCE)


def adapted_base(adapted: Transformer) -> Transformer:
    """The model without adapters, and with another head."""
    base = Transformer(adapted.config)
    weights = {name: weight for name, weight in adapted.state_dict().items() if "lora_" not in name}
    base.load_state_dict(weights | {"output.weight": torch.zeros_like(weights["output.weight"])})
    return base


def test_a_run_without_adapters_is_told_so(tmp_path: Path) -> None:
    base, _, _ = tuned(*CASES["llama"])
    plain = save(tmp_path / "run", base, LoraConfig())
    for convert in (export_adapter, merge_run):
        with pytest.raises(ConfigError, match="has no adapters"):
            convert(plain, tmp_path / "out")
