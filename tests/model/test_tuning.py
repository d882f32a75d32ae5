"""What patterns mean, and what is left to train."""

import re
from typing import Any

import pytest

from scaletrain.config.derive import check
from scaletrain.config.load import load_config
from scaletrain.config.patterns import belongs, matches
from scaletrain.config.schema import LoraConfig, ModelConfig, TuneConfig
from scaletrain.config.tune_rules import trained_part, tune_problems
from scaletrain.errors import ConfigError
from scaletrain.model.build import build_model
from scaletrain.model.transformer import Transformer
from scaletrain.model.tuning import prepare

MODEL = {"vocab_size": 50, "d_model": 24, "n_layers": 3, "n_heads": 3, "max_seq_len": 16}


@pytest.mark.parametrize(
    ("pattern", "meant", "not_meant"),
    [
        ("q", "blocks.0.attention.q", "blocks.0.attention.q_norm"),
        ("attention.*", "blocks.0.attention.out", "blocks.0.attention"),
        ("blocks.[0-1].*.up", "blocks.1.feed_forward.up", "blocks.2.feed_forward.up"),
        ("norm", "output_transform.norm", "embedding_norm"),
    ],
)
def test_a_pattern_means_names_from_a_dot_on(pattern: str, meant: str, not_meant: str) -> None:
    assert matches(meant, pattern) and not matches(not_meant, pattern)


def test_what_stands_in_a_module_belongs_to_it() -> None:
    assert belongs("blocks.0.attention.q.weight", "attention") and belongs("blocks.0.attention.q.weight", "q.weight")
    assert not belongs("blocks.0.attention_norm.weight", "attention")
    assert not belongs("position_embedding.weight", "embedding")


@pytest.mark.parametrize(
    ("model", "lora", "freeze"),
    [
        ({}, {}, ()),
        ({"n_classes": 3, "pooler": True, "n_segments": 2}, {"rank": 3, "targets": ("q", "feed_forward.*")}, ()),
        ({"n_classes": 3}, {"rank": 2, "targets": ("blocks.0.*",), "also_train": ("classifier", "norm")}, ("*.up",)),
        ({"tie_embeddings": False}, {"rank": 4, "targets": ("output", "v")}, ()),
        ({"n_encoder_layers": 2}, {"rank": 2, "targets": ("cross_attention.k", "encoder.*")}, ("encoder.blocks.1",)),
        ({"n_encoder_layers": 1, "kind": "lstm"}, {"rank": 2, "targets": ("bridge",), "also_train": ()}, ()),
        ({"activation": "swiglu", "n_kv_heads": 1}, {}, ("embedding", "gate", "blocks.[1-2]")),
    ],
)
def test_what_is_trained_is_counted_as_it_is_built(
    model: dict[str, Any], lora: dict[str, Any], freeze: tuple[str, ...]
) -> None:
    asked = ModelConfig(**(MODEL | model)), LoraConfig(**lora), TuneConfig(freeze=freeze)
    assert list(tune_problems(*asked)) == []
    built = build_model(asked[0])
    prepare(built, *asked[1:])
    weights = list(built.parameters())
    part = trained_part(*asked)
    assert part.trained == sum(weight.numel() for weight in weights if weight.requires_grad)
    assert (part.total, part.tensors) == (sum(weight.numel() for weight in weights), len(weights))


def trained(freeze: tuple[str, ...], rank: int = 0) -> set[str]:
    model = Transformer(ModelConfig(**MODEL))
    prepare(model, LoraConfig(rank=rank), TuneConfig(freeze=freeze))
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_frozen_is_what_the_patterns_mean_and_nothing_else() -> None:
    everything = trained(())
    frozen = everything - trained(("*embedding", "blocks.[0-1]"))
    assert frozen == {name for name in everything if name.startswith(("blocks.0.", "blocks.1."))} | {
        "embedding.weight",
        "position_embedding.weight",
    }
    assert trained(("blocks.0",), rank=2) == {
        f"blocks.{layer}.attention.{name}.lora_{factor}.weight" for layer in (1, 2) for name in "qv" for factor in "AB"
    }


@pytest.mark.parametrize(
    ("lora", "freeze", "told"),
    [
        ({}, ("block.0",), "nothing in the model is called block.0; its parts are blocks, embedding"),
        ({}, ("*",), "tune.freeze = * leaves nothing to train"),
        ({"rank": 2, "targets": ("q", "queries")}, (), "no linear layer is called queries; there are down, k, out"),
        ({"rank": 2, "targets": ("output",)}, (), "output shares its weight with another module"),
    ],
)
def test_the_configuration_is_refused_as_the_model_would_be(
    lora: dict[str, Any], freeze: tuple[str, ...], told: str
) -> None:
    asked = ModelConfig(**MODEL), LoraConfig(**lora), TuneConfig(freeze=freeze)
    (problem,) = tune_problems(*asked)
    assert told in problem
    with pytest.raises(ConfigError, match=re.escape(problem)):
        prepare(Transformer(asked[0]), *asked[1:])


def test_it_is_told_before_anything_is_loaded() -> None:
    config = load_config(None, {"lora.rank": "2", "lora.targets": "[query]"})
    with pytest.raises(ConfigError, match="no linear layer is called query"):
        check(config)
