"""Parameters counted from a description are those of the published models and of the built ones."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from scaletrain.config.schema import ModelConfig
from scaletrain.config.tensors import linear_layers, tensors_of
from scaletrain.model.build import build_model
from scaletrain.planning.parameters import count_parameters

PRESETS = Path(__file__).parents[2] / "configs" / "model"

PUBLISHED = {
    "gpt2": 124_439_808,
    "gpt2_medium": 354_823_168,
    "gpt2_large": 774_030_080,
    "gpt2_xl": 1_557_611_200,
    "llama2_7b": 6_738_415_616,
    "llama3_8b": 8_030_261_248,
    "t5_small": 60_506_624,
    "t5_base": 222_903_552,
    "bert_base": 110_106_428,  # transformers' BertForPreTraining
    "bert_large": 336_226_108,
}


def preset(name: str) -> ModelConfig:
    return ModelConfig(**yaml.safe_load((PRESETS / f"{name}.yaml").read_text()))


def built_size(model: ModelConfig) -> int:
    with torch.device("meta"):
        return sum(weight.numel() for weight in build_model(model).parameters())


@pytest.mark.parametrize("name", sorted(path.stem for path in PRESETS.glob("*.yaml")))
def test_the_count_of_a_preset_is_that_of_the_built_model(name: str) -> None:
    assert count_parameters(preset(name)).total == built_size(preset(name))


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_count_of_a_preset_is_the_published_one(name: str) -> None:
    assert count_parameters(preset(name)).total == PUBLISHED[name]


@pytest.mark.parametrize(
    ("name", "digits", "billions"), [("gpt3_1.3b", 1, 1.3), ("gpt3_13b", 0, 13), ("gpt3_175b", 0, 175)]
)
def test_the_counts_of_gpt3_are_the_papers_to_its_digits(name: str, digits: int, billions: float) -> None:
    assert round(count_parameters(preset(name)).total / 1e9, digits) == billions


@pytest.mark.parametrize(("name", "parameters"), [("bert_base", 109_482_240), ("bert_large", 335_141_888)])
def test_without_its_heads_the_count_of_bert_is_that_of_the_published_encoder(name: str, parameters: int) -> None:
    heads = {"output_transform": False, "output_bias": False, "n_classes": 0}
    bert = preset(name).model_copy(update=heads)
    assert count_parameters(bert).total == built_size(bert) == parameters


@pytest.mark.parametrize(("name", "millions"), [("transformer_base", 65), ("transformer_big", 213)])
def test_the_counts_of_the_first_transformers_are_about_the_papers(name: str, millions: int) -> None:
    # Table 3 says "65 x 10^6" and "213 x 10^6", of a vocabulary that it calls "about 37000".
    assert count_parameters(preset(name)).total / 1e6 == pytest.approx(millions, rel=0.03)


def test_the_demo_is_small_enough_for_two_cores() -> None:
    assert 2e6 < count_parameters(preset("demo")).total < 12e6


@settings(max_examples=40, deadline=None)
@given(
    n_heads=st.integers(1, 4),
    group=st.integers(1, 3),
    half_head=st.integers(1, 5),
    d_model=st.integers(1, 20),
    d_ff=st.integers(1, 30),
    n_layers=st.integers(1, 3),
    positions=st.sampled_from(["learned", "sinusoidal", "rotary", "relative", "none"]),
    norm=st.sampled_from(["layer_norm", "rms_norm"]),
    activation=st.sampled_from(["gelu", "gelu_tanh", "relu", "swiglu", "geglu"]),
    bias=st.booleans(),
    tie_embeddings=st.booleans(),
    **{
        key: st.booleans()
        for key in ("qkv_bias", "attention_out_bias", "qk_norm", "embedding_norm", "output_transform", "output_bias")
    },
    norm_position=st.sampled_from(["pre", "post"]),
    n_segments=st.integers(0, 2),
    n_classes=st.integers(0, 3),
    pooler=st.booleans(),
    n_encoder_layers=st.integers(0, 2),
)
def test_any_shape_is_counted_as_it_is_built(n_heads: int, group: int, half_head: int, **shape: Any) -> None:
    if shape["activation"] in ("swiglu", "geglu") or shape["n_encoder_layers"]:
        shape["output_transform"] = False
    if shape["n_encoder_layers"]:
        shape |= {"n_segments": 0, "n_classes": 0, "pooler": False}
    sizes = {"n_heads": n_heads * group, "n_kv_heads": n_heads, "head_dim": 2 * half_head}
    # Heads that do not fill the width are refused where they are what the width gives.
    assume(not shape["d_model"] % sizes["n_heads"] or sizes["head_dim"] != shape["d_model"] // sizes["n_heads"])
    check(ModelConfig(vocab_size=11, max_seq_len=7, **sizes, **shape))


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(["lstm", "cnn"]),
    half_width=st.integers(1, 6),
    d_ff=st.integers(1, 9),
    n_layers=st.integers(1, 3),
    n_encoder_layers=st.integers(0, 2),
    kernel_widths=st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple),
    n_classes=st.integers(0, 3),
    **{key: st.booleans() for key in ("causal", "tie_embeddings", "output_bias")},
)
def test_any_baseline_is_counted_as_it_is_built(kind: str, half_width: int, **shape: Any) -> None:
    if kind == "cnn":
        shape |= {"n_encoder_layers": 0, "output_bias": False}
    if shape["n_encoder_layers"]:
        shape |= {"n_classes": 0, "causal": True}
    check(ModelConfig(kind=kind, vocab_size=11, d_model=2 * half_width, **shape))


def check(model: ModelConfig) -> None:
    count = count_parameters(model)
    with torch.device("meta"):
        built = build_model(model)
    assert tensors_of(model) == {name: tuple(weight.shape) for name, weight in built.named_parameters()}
    linear = {name: tuple(part.weight.shape) for name, part in built.named_modules() if isinstance(part, nn.Linear)}
    assert linear_layers(model) == linear
    assert count.total == sum(weight.numel() for weight in built.parameters())
    outer = count.embedding + count.position_embedding + count.segment_embedding + count.output + count.head
    assert count.total == outer + count.non_embedding
