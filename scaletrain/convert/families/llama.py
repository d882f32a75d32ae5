"""Llama 2 and 3, and what Mistral and Qwen share with them: RMSNorm, SwiGLU, rotary positions, few key/value heads."""

from collections.abc import Mapping
from typing import Any

from scaletrain.config.schema import ModelConfig
from scaletrain.convert.family import Family
from scaletrain.convert.rope import read_rope, unify_rope, write_rope
from scaletrain.convert.rows import same

_OURS, _THEIRS = "blocks.{layer}.", "model.layers.{layer}."

ROWS = (
    same("embedding.weight", "model.embed_tokens.weight"),
    *(
        same(f"{_OURS}{ours}.{kind}", f"{_THEIRS}{theirs}.{kind}")
        for ours, theirs in (
            ("attention_norm", "input_layernorm"),
            ("attention.q", "self_attn.q_proj"),
            ("attention.k", "self_attn.k_proj"),
            ("attention.v", "self_attn.v_proj"),
            ("attention.out", "self_attn.o_proj"),
            ("attention.q_norm", "self_attn.q_norm"),
            ("attention.k_norm", "self_attn.k_norm"),
            ("feed_forward_norm", "post_attention_layernorm"),
            ("feed_forward.gate", "mlp.gate_proj"),
            ("feed_forward.up", "mlp.up_proj"),
            ("feed_forward.down", "mlp.down_proj"),
        )
        for kind in ("weight", "bias")
    ),
    same("norm.weight", "model.norm.weight"),
    same("output.weight", "lm_head.weight"),
)

DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "rope_theta": 10_000.0,
    "partial_rotary_factor": 1.0,
    "rope_scaling": None,
}
COMPUTED = (r"\.rotary_emb\.inv_freq$",)


def read_llama(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a ModelConfig, without biases."""
    head_dim = theirs["head_dim"] or theirs["hidden_size"] // theirs["num_attention_heads"]
    return {
        "vocab_size": theirs["vocab_size"],
        "d_model": theirs["hidden_size"],
        "n_layers": theirs["num_hidden_layers"],
        "n_heads": theirs["num_attention_heads"],
        "n_kv_heads": theirs["num_key_value_heads"] or theirs["num_attention_heads"],
        "head_dim": head_dim,
        "d_ff": theirs["intermediate_size"],
        "max_seq_len": theirs["max_position_embeddings"],
        "norm": "rms_norm",
        "norm_eps": theirs["rms_norm_eps"],
        "activation": "swiglu",
        "bias": False,
        "tie_embeddings": theirs["tie_word_embeddings"],
        **read_rope({**theirs, "partial_rotary_factor": 1.0}, head_dim),
    }


def write_llama(model: ModelConfig) -> dict[str, Any]:
    """Keys of ``config.json``, without biases."""
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": model.d_model,
        "intermediate_size": model.d_ff,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": model.n_heads,
        "num_key_value_heads": model.n_kv_heads,
        "head_dim": model.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": model.max_seq_len,
        "rms_norm_eps": model.norm_eps,
        "tie_word_embeddings": model.tie_embeddings,
        **write_rope(model),
        "partial_rotary_factor": 1.0,
    }


def _read(theirs: Mapping[str, Any]) -> dict[str, Any]:
    biases = {"qkv_bias": theirs["attention_bias"], "attention_out_bias": theirs["attention_bias"]}
    return {**read_llama(theirs), **biases, "bias": theirs["mlp_bias"]}


def _write(model: ModelConfig) -> dict[str, Any]:
    return {**write_llama(model), "attention_bias": model.qkv_bias, "mlp_bias": model.bias}


LLAMA = Family(
    model_type="llama",
    architectures=("LlamaForCausalLM", "LlamaModel"),
    rows=ROWS,
    defaults=DEFAULTS,
    read=_read,
    write=_write,
    unify=unify_rope,
    prefix="model.",
    bare=("LlamaModel",),
    computed=COMPUTED,
)
