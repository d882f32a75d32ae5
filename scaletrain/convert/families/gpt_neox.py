"""GPT-NeoX, such as Pythia: both branches of a layer beside each other, and heads that are rotated in part."""

from collections.abc import Mapping
from typing import Any

from scaletrain.config.schema import ModelConfig
from scaletrain.convert.activations import read_gelu, unify_gelu, write_gelu
from scaletrain.convert.family import Family
from scaletrain.convert.rope import read_rope, unify_rope, write_rope
from scaletrain.convert.rows import joined_by_head, same


def _unify(theirs: Mapping[str, Any]) -> dict[str, Any]:
    unified = unify_rope(theirs)
    return {**unified, "hidden_act": unify_gelu(unified["hidden_act"])}


def _read(theirs: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "vocab_size": theirs["vocab_size"],
        "d_model": theirs["hidden_size"],
        "n_layers": theirs["num_hidden_layers"],
        "n_heads": theirs["num_attention_heads"],
        "d_ff": theirs["intermediate_size"],
        "max_seq_len": theirs["max_position_embeddings"],
        "norm_eps": theirs["layer_norm_eps"],
        "activation": read_gelu(theirs["hidden_act"]),
        "parallel_residual": theirs["use_parallel_residual"],
        "qkv_bias": theirs["attention_bias"],
        "attention_out_bias": theirs["attention_bias"],
        "tie_embeddings": theirs["tie_word_embeddings"],
        **read_rope(theirs, theirs["hidden_size"] // theirs["num_attention_heads"]),
    }


def _write(model: ModelConfig) -> dict[str, Any]:
    rope = write_rope(model)  # under names of its own
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": model.d_model,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": model.n_heads,
        "intermediate_size": model.d_ff,
        "max_position_embeddings": model.max_seq_len,
        "layer_norm_eps": model.norm_eps,
        "hidden_act": write_gelu(model.activation),
        "use_parallel_residual": model.parallel_residual,
        "attention_bias": model.qkv_bias,
        "tie_word_embeddings": model.tie_embeddings,
        "rotary_emb_base": rope["rope_theta"],
        "rotary_pct": rope["partial_rotary_factor"],
        "rope_scaling": rope["rope_scaling"],
    }


_OURS, _THEIRS = "blocks.{layer}.", "gpt_neox.layers.{layer}."

GPT_NEOX = Family(
    model_type="gpt_neox",
    architectures=("GPTNeoXForCausalLM", "GPTNeoXModel"),
    rows=(
        same("embedding.weight", "gpt_neox.embed_in.weight"),
        *(
            same(f"{_OURS}{ours}.{kind}", f"{_THEIRS}{theirs}.{kind}")
            for kind in ("weight", "bias")
            for ours, theirs in (
                ("attention_norm", "input_layernorm"),
                ("feed_forward_norm", "post_attention_layernorm"),
                ("attention.out", "attention.dense"),
                ("feed_forward.up", "mlp.dense_h_to_4h"),
                ("feed_forward.down", "mlp.dense_4h_to_h"),
            )
        ),
        *(
            joined_by_head(
                [f"{_OURS}attention.{name}.{kind}" for name in "qkv"], f"{_THEIRS}attention.query_key_value.{kind}"
            )
            for kind in ("weight", "bias")
        ),
        same("norm.weight", "gpt_neox.final_layer_norm.weight"),
        same("norm.bias", "gpt_neox.final_layer_norm.bias"),
        same("output.weight", "embed_out.weight"),
    ),
    defaults={
        "vocab_size": 50432,
        "hidden_size": 6144,
        "num_hidden_layers": 44,
        "num_attention_heads": 64,
        "intermediate_size": 24576,
        "hidden_act": "gelu",
        "max_position_embeddings": 2048,
        "layer_norm_eps": 1e-5,
        "use_parallel_residual": True,
        "attention_bias": True,
        "tie_word_embeddings": False,
        "rope_theta": 10_000.0,
        "partial_rotary_factor": 0.25,
        "rope_scaling": None,
    },
    read=_read,
    write=_write,
    unify=_unify,
    prefix="gpt_neox.",
    bare=("GPTNeoXModel",),
    computed=(r"\.attention\.(bias|masked_bias)$", r"\.rotary_emb\.inv_freq$"),
    renamed={r"^lm_head\.": "embed_out."},
)
