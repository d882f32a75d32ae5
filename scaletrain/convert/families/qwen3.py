"""Qwen3: Llama with norms of queries and keys."""

from collections.abc import Mapping
from typing import Any

from scaletrain.config.schema import ModelConfig
from scaletrain.convert.families.llama import COMPUTED, ROWS, read_llama, write_llama
from scaletrain.convert.families.qwen2 import QWEN_DEFAULTS, read_window, unify_qwen, write_window
from scaletrain.convert.family import Family


def _read(theirs: Mapping[str, Any]) -> dict[str, Any]:
    biases = {"qkv_bias": theirs["attention_bias"], "attention_out_bias": theirs["attention_bias"]}
    return {**read_llama(theirs), **biases, "qk_norm": True, **read_window(theirs)}


def _write(model: ModelConfig) -> dict[str, Any]:
    return {**write_llama(model), "attention_bias": model.qkv_bias, **write_window(model)}


QWEN3 = Family(
    model_type="qwen3",
    architectures=("Qwen3ForCausalLM", "Qwen3Model"),
    rows=ROWS,
    defaults={**QWEN_DEFAULTS, "head_dim": 128, "attention_bias": False},
    read=_read,
    write=_write,
    unify=unify_qwen,
    prefix="model.",
    bare=("Qwen3Model",),
    computed=COMPUTED,
)
