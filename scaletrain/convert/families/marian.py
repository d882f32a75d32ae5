"""Marian, as which the original Transformer goes out: norms behind the sums, sinusoidal positions, one embedding.

Marian's encoding of a position has all sines before all cosines, where the paper, and the model here, has each cosine
behind its sine. All else treats the dimensions of the residual stream alike, so that the same model is had by another
order of these in all weights that read or write it.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from scaletrain.config.schema import ModelConfig
from scaletrain.convert.activations import read_gelu, unify_gelu, write_gelu
from scaletrain.convert.family import Family
from scaletrain.convert.rows import ENCODER_LAYER, LAYER, Row, halved_columns, halved_rows, same, single_row
from scaletrain.errors import ConfigError

_NORM_EPS = 1e-5  # of torch.nn.LayerNorm, which the class there leaves as it is


def _unify(theirs: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **theirs,
        "activation_function": unify_gelu(theirs["activation_function"]),
        "decoder_vocab_size": theirs["decoder_vocab_size"] or theirs["vocab_size"],
    }


def _read(theirs: Mapping[str, Any]) -> dict[str, Any]:
    if theirs["d_model"] % 2:
        raise ConfigError(f"config.json has d_model = {theirs['d_model']}, which cannot be halved")
    return {
        "vocab_size": theirs["vocab_size"],
        "d_model": theirs["d_model"],
        "n_encoder_layers": theirs["encoder_layers"],
        "n_layers": theirs["decoder_layers"],
        "n_heads": theirs["encoder_attention_heads"],
        "head_dim": theirs["d_model"] // theirs["encoder_attention_heads"],
        "d_ff": theirs["encoder_ffn_dim"],
        "max_seq_len": theirs["max_position_embeddings"],
        "positions": "sinusoidal",
        "norm_eps": _NORM_EPS,
        "norm_position": "post",
        "activation": read_gelu(theirs["activation_function"]),
        "output_bias": True,
    }


def _write(model: ModelConfig) -> dict[str, Any]:
    both = {
        # At least one, so that who reads it again finds a model without an encoder to differ.
        "layers": (max(1, model.n_encoder_layers), model.n_layers),
        "attention_heads": (model.n_heads, model.n_heads),
        "ffn_dim": (model.d_ff, model.d_ff),
    }
    return {
        "vocab_size": model.vocab_size,
        "decoder_vocab_size": model.vocab_size,
        "d_model": model.d_model,
        **{f"encoder_{key}": value for key, (value, _) in both.items()},
        **{f"decoder_{key}": value for key, (_, value) in both.items()},
        "max_position_embeddings": model.max_seq_len,
        "activation_function": write_gelu(model.activation),
        "scale_embedding": True,
        "share_encoder_decoder_embeddings": True,
        "tie_word_embeddings": True,
        "is_encoder_decoder": True,
    }


def _stack(side: str, number: str, branches: Mapping[str, str]) -> Iterator[Row]:
    """The rows of the layers of an encoder or a decoder.

    Args:
        side: Its name, the same on both sides.
        number: Stands for the number of a layer.
        branches: Our names of its branches of attention, with theirs.
    """
    ours, theirs = f"{side}.blocks.{number}.", f"model.{side}.layers.{number}."
    for here, there in branches.items():
        for name in "qkv":
            yield halved_columns(f"{ours}{here}.{name}.weight", f"{theirs}{there}.{name}_proj.weight")
            yield same(f"{ours}{here}.{name}.bias", f"{theirs}{there}.{name}_proj.bias")
        for kind in ("weight", "bias"):
            yield halved_rows(f"{ours}{here}.out.{kind}", f"{theirs}{there}.out_proj.{kind}")
            yield halved_rows(f"{ours}{here}_norm.{kind}", f"{theirs}{there}_layer_norm.{kind}")
    yield halved_columns(f"{ours}feed_forward.up.weight", f"{theirs}fc1.weight")
    yield same(f"{ours}feed_forward.up.bias", f"{theirs}fc1.bias")
    for kind in ("weight", "bias"):
        yield halved_rows(f"{ours}feed_forward.down.{kind}", f"{theirs}fc2.{kind}")
        yield halved_rows(f"{ours}feed_forward_norm.{kind}", f"{theirs}final_layer_norm.{kind}")


MARIAN = Family(
    model_type="marian",
    architectures=("MarianMTModel",),
    rows=(
        halved_columns("encoder.embedding.weight", "model.shared.weight"),
        *_stack("encoder", ENCODER_LAYER, {"attention": "self_attn"}),
        *_stack("decoder", LAYER, {"attention": "self_attn", "cross_attention": "encoder_attn"}),
        single_row("output.bias", "final_logits_bias"),
    ),
    defaults={
        "vocab_size": 58101,
        "decoder_vocab_size": None,
        "d_model": 1024,
        "encoder_layers": 12,
        "decoder_layers": 12,
        "encoder_attention_heads": 16,
        "decoder_attention_heads": 16,
        "encoder_ffn_dim": 4096,
        "decoder_ffn_dim": 4096,
        "max_position_embeddings": 1024,
        "activation_function": "gelu",
        "scale_embedding": False,
        "share_encoder_decoder_embeddings": True,
        "tie_word_embeddings": True,
        "is_encoder_decoder": True,
    },
    read=_read,
    write=_write,
    unify=_unify,
    prefix="model.",
    computed=(r"\.embed_positions\.weight$",),
)
