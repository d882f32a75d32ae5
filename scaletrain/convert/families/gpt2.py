"""GPT-2: learned positions, LayerNorm, and matrices stored input x output."""

from collections.abc import Mapping
from typing import Any

from scaletrain.config.schema import ModelConfig
from scaletrain.convert.activations import read_gelu, unify_gelu, write_gelu
from scaletrain.convert.family import Family
from scaletrain.convert.rows import joined, joined_transposed, same, transposed


def _unify(theirs: Mapping[str, Any]) -> dict[str, Any]:
    return {**theirs, "activation_function": unify_gelu(theirs["activation_function"])}


def _read(theirs: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "vocab_size": theirs["vocab_size"],
        "d_model": theirs["n_embd"],
        "n_layers": theirs["n_layer"],
        "n_heads": theirs["n_head"],
        "d_ff": theirs["n_inner"] or 4 * theirs["n_embd"],
        "max_seq_len": theirs["n_positions"],
        "norm_eps": theirs["layer_norm_epsilon"],
        "activation": read_gelu(theirs["activation_function"]),
        "tie_embeddings": theirs["tie_word_embeddings"],
    }


def _write(model: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": model.vocab_size,
        "n_embd": model.d_model,
        "n_layer": model.n_layers,
        "n_head": model.n_heads,
        "n_inner": model.d_ff,
        "n_positions": model.max_seq_len,
        "layer_norm_epsilon": model.norm_eps,
        "activation_function": write_gelu(model.activation),
        "tie_word_embeddings": model.tie_embeddings,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    }


_OURS, _THEIRS = "blocks.{layer}.", "transformer.h.{layer}."

GPT2 = Family(
    model_type="gpt2",
    architectures=("GPT2LMHeadModel", "GPT2Model"),
    rows=(
        same("embedding.weight", "transformer.wte.weight"),
        same("position_embedding.weight", "transformer.wpe.weight"),
        *(
            same(f"{_OURS}{ours}.{kind}", f"{_THEIRS}{theirs}.{kind}")
            for kind in ("weight", "bias")
            for ours, theirs in (("attention_norm", "ln_1"), ("feed_forward_norm", "ln_2"))
        ),
        joined_transposed([f"{_OURS}attention.{name}.weight" for name in "qkv"], f"{_THEIRS}attn.c_attn.weight"),
        joined([f"{_OURS}attention.{name}.bias" for name in "qkv"], f"{_THEIRS}attn.c_attn.bias"),
        *(
            row(f"{_OURS}{ours}.{kind}", f"{_THEIRS}{theirs}.{kind}")
            for kind, row in (("weight", transposed), ("bias", same))
            for ours, theirs in (
                ("attention.out", "attn.c_proj"),
                ("feed_forward.up", "mlp.c_fc"),
                ("feed_forward.down", "mlp.c_proj"),
            )
        ),
        same("norm.weight", "transformer.ln_f.weight"),
        same("norm.bias", "transformer.ln_f.bias"),
        same("output.weight", "lm_head.weight"),
    ),
    defaults={
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_inner": None,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
        "tie_word_embeddings": True,
    },
    read=_read,
    write=_write,
    unify=_unify,
    prefix="transformer.",
    bare=("GPT2Model",),
    computed=(r"\.attn\.(bias|masked_bias)$",),
)
