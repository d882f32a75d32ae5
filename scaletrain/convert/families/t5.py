"""T5 and T5 1.1: an encoder and a decoder, distances instead of positions, RMSNorm, and no bias anywhere."""

from collections.abc import Iterator, Mapping
from typing import Any

from scaletrain.config.schema import ModelConfig
from scaletrain.convert.family import Family
from scaletrain.convert.rows import ENCODER_LAYER, LAYER, Row, same, where
from scaletrain.errors import ConfigError

# By ``feed_forward_proj``.
_ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gated-gelu": "geglu",
    "gated-silu": "swiglu",
}
_GATED = ("geglu", "swiglu")
# The name of the function alone, where it is another.
_FUNCTIONS = {"gated-gelu": "gelu_new", "gated-silu": "silu"}


def _unify(theirs: Mapping[str, Any]) -> dict[str, Any]:
    n_decoder_layers = theirs["num_decoder_layers"]
    is_scaled = theirs["scale_decoder_outputs"]
    return {
        **theirs,
        "num_decoder_layers": theirs["num_layers"] if n_decoder_layers is None else n_decoder_layers,
        # Of folders from before there was the key, the one of the two tells the other.
        "scale_decoder_outputs": theirs["tie_word_embeddings"] if is_scaled is None else is_scaled,
    }


def _read(theirs: Mapping[str, Any]) -> dict[str, Any]:
    if theirs["feed_forward_proj"] not in _ACTIVATIONS:
        raise ConfigError(
            f"config.json asks for the feed_forward_proj {theirs['feed_forward_proj']}; in this family the model here "
            f"has {', '.join(sorted(_ACTIVATIONS))}"
        )
    return {
        "vocab_size": theirs["vocab_size"],
        "d_model": theirs["d_model"],
        "n_encoder_layers": theirs["num_layers"],
        "n_layers": theirs["num_decoder_layers"],
        "n_heads": theirs["num_heads"],
        "head_dim": theirs["d_kv"],
        "d_ff": theirs["d_ff"],
        "max_seq_len": theirs["n_positions"],
        "positions": "relative",
        "relative_buckets": theirs["relative_attention_num_buckets"],
        "relative_max_distance": theirs["relative_attention_max_distance"],
        "norm": "rms_norm",
        "norm_eps": theirs["layer_norm_epsilon"],
        "attention_scale": False,
        "activation": _ACTIVATIONS[theirs["feed_forward_proj"]],
        "bias": False,
        "tie_embeddings": theirs["tie_word_embeddings"],
        "output_scale": theirs["d_model"] ** -0.5 if theirs["scale_decoder_outputs"] else 1.0,
    }


def _write(model: ModelConfig) -> dict[str, Any]:
    activation = next(name for name, ours in _ACTIVATIONS.items() if ours == model.activation)
    return {
        "vocab_size": model.vocab_size,
        "d_model": model.d_model,
        # At least one, so that who reads it again finds a model without an encoder to differ.
        "num_layers": max(1, model.n_encoder_layers),
        "num_decoder_layers": model.n_layers,
        "num_heads": model.n_heads,
        "d_kv": model.head_dim,
        "d_ff": model.d_ff,
        "n_positions": model.max_seq_len,
        "relative_attention_num_buckets": model.relative_buckets,
        "relative_attention_max_distance": model.relative_max_distance,
        "layer_norm_epsilon": model.norm_eps,
        "feed_forward_proj": activation,
        "dense_act_fn": _FUNCTIONS.get(activation, activation),
        "is_gated_act": model.activation in _GATED,
        "tie_word_embeddings": model.tie_embeddings,
        "scale_decoder_outputs": model.output_scale != 1.0,
        "is_encoder_decoder": True,
    }


def _is_gated(model: ModelConfig) -> bool:
    return model.activation in _GATED


def _is_plain(model: ModelConfig) -> bool:
    return model.activation not in _GATED


def _stack(side: str, number: str, branches: Mapping[str, str]) -> Iterator[Row]:
    """The rows of an encoder or a decoder.

    Args:
        side: Its name, the same on both sides.
        number: Stands for the number of a layer.
        branches: Our names of its branches of attention, in their order, with theirs.
    """
    yield same(f"{side}.position_bias.weight", f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight")
    ours, theirs = f"{side}.blocks.{number}.", f"{side}.block.{number}.layer."
    for place, (here, there) in enumerate(branches.items()):
        yield same(f"{ours}{here}_norm.weight", f"{theirs}{place}.layer_norm.weight")
        for matrix, their_matrix in (("q", "q"), ("k", "k"), ("v", "v"), ("out", "o")):
            yield same(f"{ours}{here}.{matrix}.weight", f"{theirs}{place}.{there}.{their_matrix}.weight")
    last = f"{theirs}{len(branches)}."
    yield same(f"{ours}feed_forward_norm.weight", f"{last}layer_norm.weight")
    yield where(_is_plain, same(f"{ours}feed_forward.up.weight", f"{last}DenseReluDense.wi.weight"))
    yield where(_is_gated, same(f"{ours}feed_forward.gate.weight", f"{last}DenseReluDense.wi_0.weight"))
    yield where(_is_gated, same(f"{ours}feed_forward.up.weight", f"{last}DenseReluDense.wi_1.weight"))
    yield same(f"{ours}feed_forward.down.weight", f"{last}DenseReluDense.wo.weight")
    yield same(f"{side}.norm.weight", f"{side}.final_layer_norm.weight")


T5 = Family(
    model_type="t5",
    architectures=("T5ForConditionalGeneration",),
    rows=(
        same("encoder.embedding.weight", "shared.weight"),
        *_stack("encoder", ENCODER_LAYER, {"attention": "SelfAttention"}),
        *_stack("decoder", LAYER, {"attention": "SelfAttention", "cross_attention": "EncDecAttention"}),
        same("output.weight", "lm_head.weight"),
    ),
    defaults={
        "vocab_size": 32128,
        "d_model": 512,
        "d_kv": 64,
        "d_ff": 2048,
        "num_layers": 6,
        "num_decoder_layers": None,
        "num_heads": 8,
        "n_positions": 512,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": "relu",
        "tie_word_embeddings": True,
        "scale_decoder_outputs": None,
        "is_encoder_decoder": True,
    },
    read=_read,
    write=_write,
    unify=_unify,
    # Cross attention has no distances; old folders have a table all the same.
    computed=(r"^decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight$",),
)
