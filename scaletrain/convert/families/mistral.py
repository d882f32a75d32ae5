"""Mistral: Llama with a window."""

from collections.abc import Mapping
from typing import Any

from scaletrain.config.schema import ModelConfig
from scaletrain.convert.families.llama import COMPUTED, DEFAULTS, ROWS, read_llama, write_llama
from scaletrain.convert.family import Family
from scaletrain.convert.rope import unify_rope


def _read(theirs: Mapping[str, Any]) -> dict[str, Any]:
    return {**read_llama(theirs), "sliding_window": theirs["sliding_window"] or 0}


def _write(model: ModelConfig) -> dict[str, Any]:
    return {**write_llama(model), "sliding_window": model.sliding_window or None}


_NOT_MISTRALS = ("attention_bias", "mlp_bias")

MISTRAL = Family(
    model_type="mistral",
    architectures=("MistralForCausalLM", "MistralModel"),
    rows=ROWS,
    defaults={
        **{key: value for key, value in DEFAULTS.items() if key not in _NOT_MISTRALS},
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    },
    read=_read,
    write=_write,
    unify=unify_rope,
    prefix="model.",
    bare=("MistralModel",),
    computed=COMPUTED,
)
