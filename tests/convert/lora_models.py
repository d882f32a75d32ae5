"""Tiny models with LoRA adapters, made by transformers and peft."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LLAMA = LlamaConfig(
    vocab_size=101,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    tie_word_embeddings=False,
)
LLAMA_BIASED = LlamaConfig(**(LLAMA.to_diff_dict() | {"attention_bias": True}))
LLAMA_TIED = LlamaConfig(**(LLAMA.to_diff_dict() | {"tie_word_embeddings": True}))
GPT2 = GPT2Config(
    vocab_size=101, n_positions=32, n_embd=24, n_layer=2, n_head=4, tie_word_embeddings=False, pad_token_id=0
)
BERT = BertConfig(
    vocab_size=101,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=32,
)
Loader = Any  # one of transformers' Auto classes


def save_source(path: Path, loader: Loader, config: PreTrainedConfig, dtype: str = "fp32") -> Path:
    torch.manual_seed(3)
    model = loader.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)  # biases and norms too
    model.to(DTYPES[dtype]).save_pretrained(path)
    return path


def save_adapter(path: Path, source: Path, loader: Loader, dtype: str = "fp32", **options: Any) -> Path:
    """An adapter all of whose tensors hold random numbers, as if it were trained."""
    torch.manual_seed(4)
    base = loader.from_pretrained(source)
    model = get_peft_model(base, LoraConfig(**({"r": 3, "lora_alpha": 5} | options)))
    with torch.no_grad():
        for _, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.3)
    model.save_pretrained(path)
    if dtype != "fp32":
        cast(path, lambda tensor: tensor.to(DTYPES[dtype]))
    return path


def cast(adapter: Path, change: Any) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({name: change(tensor) for name, tensor in tensors.items()}, adapter / "adapter_model.safetensors")


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


LLAMA_ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
