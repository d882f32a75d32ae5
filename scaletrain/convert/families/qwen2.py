"""Qwen2 and Qwen2.5: Llama with biases of queries, keys and values, and a window from some layer on."""

from collections.abc import Mapping
from typing import Any

from scaletrain.config.schema import ModelConfig
from scaletrain.convert.families.llama import COMPUTED, DEFAULTS, ROWS, read_llama, write_llama
from scaletrain.convert.family import Family
from scaletrain.convert.rope import unify_rope
from scaletrain.errors import ConfigError

QWEN_DEFAULTS = {
    **{key: value for key, value in DEFAULTS.items() if key not in ("attention_bias", "mlp_bias")},
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
}


def unify_qwen(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Gives windows one form: none at all, or from a layer on.

    Raises:
        ConfigError: Layers with and without a window alternate.
    """
    unified = unify_rope(theirs)
    kinds = unified.pop("layer_types")
    n_layers = unified["num_hidden_layers"]
    first = unified["max_window_layers"] if unified["use_sliding_window"] and unified["sliding_window"] else n_layers
    if kinds is not None:
        first = kinds.index("sliding_attention") if "sliding_attention" in kinds else n_layers
        if kinds != ["full_attention"] * first + ["sliding_attention"] * (n_layers - first):
            raise ConfigError(
                f"config.json asks for layer_types = {kinds}, and the model here has a window from one layer on only"
            )
    if first >= n_layers:
        return {**unified, "use_sliding_window": False, "sliding_window": None, "max_window_layers": n_layers}
    return {**unified, "use_sliding_window": True, "max_window_layers": first}


def read_window(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a ModelConfig from what ``unify_qwen`` gave."""
    if not theirs["use_sliding_window"]:
        return {}
    return {"sliding_window": theirs["sliding_window"], "sliding_window_from_layer": theirs["max_window_layers"]}


def write_window(model: ModelConfig) -> dict[str, Any]:
    """Keys of ``config.json``."""
    has_window = model.sliding_window > 0 and model.sliding_window_from_layer < model.n_layers
    return {
        "use_sliding_window": has_window,
        "sliding_window": model.sliding_window if has_window else None,
        "max_window_layers": model.sliding_window_from_layer if has_window else model.n_layers,
    }


def _read(theirs: Mapping[str, Any]) -> dict[str, Any]:
    return {**read_llama(theirs), "qkv_bias": True, **read_window(theirs)}


def _write(model: ModelConfig) -> dict[str, Any]:
    # Its readers have no head_dim of its own: that of the others follows from hidden_size.
    return {key: value for key, value in write_llama(model).items() if key != "head_dim"} | write_window(model)


QWEN2 = Family(
    model_type="qwen2",
    architectures=("Qwen2ForCausalLM", "Qwen2Model"),
    rows=ROWS,
    defaults=QWEN_DEFAULTS,
    read=_read,
    write=_write,
    unify=unify_qwen,
    prefix="model.",
    bare=("Qwen2Model",),
    computed=COMPUTED,
)
