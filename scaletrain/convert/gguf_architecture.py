"""Which of GGUF's architectures a model is, and what the file says of its shape."""

from typing import TYPE_CHECKING, Any

from scaletrain.config.schema import ModelConfig
from scaletrain.errors import ConfigError

if TYPE_CHECKING:
    from gguf import GGUFWriter

# What llama.cpp calculates for each architecture, whatever the file says: other values cannot be carried.
_ALL: dict[str, Any] = {
    "kind": "transformer",
    "n_encoder_layers": 0,
    "attention_scale": True,
    "output_scale": 1.0,
    "causal": True,
    "norm_position": "pre",
    "embedding_norm": False,
    "parallel_residual": False,
    "n_segments": 0,
    "output_transform": False,
    "output_bias": False,
    "pooler": False,
    "n_classes": 0,
}
_LLAMA: dict[str, Any] = {**_ALL, "positions": "rotary", "norm": "rms_norm", "activation": "swiglu"}
_FIXED: dict[str, dict[str, Any]] = {
    "gpt2": {
        **_ALL,
        "positions": "learned",
        "norm": "layer_norm",
        "activation": "gelu_tanh",
        "bias": True,
        "qkv_bias": True,
        "attention_out_bias": True,
        "qk_norm": False,
    },
    "llama": {**_LLAMA, "qk_norm": False},
    "qwen2": {**_LLAMA, "qk_norm": False, "bias": False, "qkv_bias": True, "attention_out_bias": False},
    "qwen3": {**_LLAMA, "qk_norm": True, "bias": False, "qkv_bias": False, "attention_out_bias": False},
}


def architecture_of(config: ModelConfig) -> str:
    """Finds the architecture that calculates what a model does.

    Args:
        config: The model's description.

    Returns:
        ``llama``, ``qwen2``, ``qwen3`` or ``gpt2``.

    Raises:
        ConfigError: There is none; all that stands in the way is named.
    """
    architecture = _nearest(config)
    wrong = [
        f"model.{option} = {_shown(getattr(config, option))} (it has {_shown(fixed)})"
        for option, fixed in _FIXED[architecture].items()
        if getattr(config, option) != fixed
    ]
    if config.sliding_window and config.sliding_window < config.max_seq_len:
        wrong.append(f"model.sliding_window = {config.sliding_window} (it sees all tokens)")
    if architecture == "gpt2":
        wrong += _wrong_heads(config)
    elif config.rotary_dim != config.head_dim:
        wrong.append(
            f"model.rotary_dim = {config.rotary_dim} (it rotates all of a head's {config.head_dim} dimensions)"
        )
    if architecture.startswith("qwen") and config.rope_scaling == "llama3":
        wrong.append("model.rope_scaling = llama3 (it has none or linear)")
    if wrong:
        raise ConfigError(
            f"GGUF's architecture {architecture}, the nearest to this model, cannot say "
            f"{', nor '.join(wrong)}. Only llama, mistral, qwen2, qwen3 and gpt2 models can be written as GGUF; "
            f"convert this one to Hugging Face's format instead."
        )
    return architecture


def _nearest(config: ModelConfig) -> str:
    if config.positions != "rotary" and config.norm == "layer_norm":
        return "gpt2"
    if config.qk_norm:
        return "qwen3"
    return "qwen2" if config.qkv_bias and not config.attention_out_bias and not config.bias else "llama"


def _wrong_heads(config: ModelConfig) -> list[str]:
    wrong = []
    if config.n_kv_heads != config.n_heads:
        wrong.append(f"model.n_kv_heads = {config.n_kv_heads} (it has as many as model.n_heads = {config.n_heads})")
    if config.n_heads * config.head_dim != config.d_model:
        wrong.append(f"model.head_dim = {config.head_dim} (it has d_model / n_heads)")
    return wrong


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def describe_model(writer: "GGUFWriter", config: ModelConfig) -> None:
    """Writes the shape of a model as key-value pairs.

    Args:
        writer: Gets them; its architecture is the model's.
        config: The model's description, which ``architecture_of`` has accepted.
    """
    from gguf import RopeScalingType

    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_seq_len)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_head_count(config.n_heads)
    if config.norm == "layer_norm":
        writer.add_layer_norm_eps(config.norm_eps)
    else:
        writer.add_layer_norm_rms_eps(config.norm_eps)
    if config.positions != "rotary":
        return
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.rotary_dim)
    writer.add_rope_freq_base(config.rope_theta)
    if config.rope_scaling == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_factor)
