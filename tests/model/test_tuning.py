"""What patterns mean, and what is left to train."""

import pytest

from scaletrain.config.schema import LoraConfig, ModelConfig, TuneConfig
from scaletrain.errors import ConfigError
from scaletrain.model.selection import belongs, matches
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


def test_a_pattern_that_means_nothing_and_one_that_means_all_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"nothing in the model is called block\.0; its parts are blocks, embedding"):
        trained(("block.0",))
    with pytest.raises(ConfigError, match="leaves nothing to train"):
        trained(("*",))
