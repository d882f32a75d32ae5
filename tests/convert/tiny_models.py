"""Tiny models with random weights, made by transformers itself: one of each kind that a family has."""

from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from scaletrain.data.tokenizer import train_byte_level_bpe

VOCAB = 300
TEXT = "the quick brown fox jumps over the lazy dog, and does it again and again. " * 20
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 50_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def gpt2(**more: object) -> PreTrainedModel:
    sizes = {"vocab_size": VOCAB, "n_positions": 64, "n_embd": 48, "n_layer": 3, "n_head": 4}
    return GPT2LMHeadModel(GPT2Config(**sizes, initializer_range=0.2, bos_token_id=0, eos_token_id=0, **more))


def made(kind: type, config: type, **more: object) -> Callable[[], PreTrainedModel]:
    return lambda: kind(config(**{**SIZES, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None, **more}))


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2": gpt2,
    "gpt2 untied, exact gelu": lambda: gpt2(tie_word_embeddings=False, activation_function="gelu", n_inner=100),
    "gpt_neox": made(
        GPTNeoXForCausalLM, GPTNeoXConfig, rope_parameters={"rope_theta": 1e4, "partial_rotary_factor": 0.5}
    ),
    "gpt_neox sequential": made(
        GPTNeoXForCausalLM, GPTNeoXConfig, use_parallel_residual=False, attention_bias=False, rotary_pct=0.5
    ),
    "llama": made(LlamaForCausalLM, LlamaConfig, num_key_value_heads=2),
    "llama 3": made(
        LlamaForCausalLM, LlamaConfig, num_key_value_heads=1, tie_word_embeddings=True, rope_parameters=LLAMA3_ROPE
    ),
    "llama biased, linear": made(
        LlamaForCausalLM,
        LlamaConfig,
        attention_bias=True,
        mlp_bias=True,
        head_dim=16,
        rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
    ),
    "mistral": made(MistralForCausalLM, MistralConfig, num_key_value_heads=2, sliding_window=7),
    "mistral without window": made(MistralForCausalLM, MistralConfig, num_key_value_heads=2, sliding_window=None),
    "qwen2": made(Qwen2ForCausalLM, Qwen2Config, num_key_value_heads=2, tie_word_embeddings=True),
    "qwen2 with a window": made(
        Qwen2ForCausalLM,
        Qwen2Config,
        num_key_value_heads=2,
        use_sliding_window=True,
        sliding_window=6,
        max_window_layers=2,
    ),
    "qwen3": made(Qwen3ForCausalLM, Qwen3Config, num_key_value_heads=2, head_dim=20, tie_word_embeddings=True),
    "bert": made(BertForMaskedLM, BertConfig, pad_token_id=0),
    "bert with both heads": made(BertForPreTraining, BertConfig, pad_token_id=0),
    "bert without a head": made(BertModel, BertConfig, pad_token_id=0),
}
CAUSAL = [name for name in MODELS if not name.startswith("bert")]


def build(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model whose vectors are random too: biases of zero and gains of one would hide what is exchanged."""
    torch.manual_seed(0)
    model = MODELS[name]()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.normal_(1.0 if "bias" not in parameter_name else 0.0, 0.2)
    return model.to(dtype).eval()


def tokenizer() -> Tokenizer:
    return train_byte_level_bpe([TEXT], VOCAB)


def save(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Saves a model with a tokenizer, and gives it back."""
    model = build(name, dtype)
    model.save_pretrained(folder)
    tokenizer().save(str(folder / "tokenizer.json"))
    return model
