"""Tiny encoder-decoders with random weights, made by transformers itself, and a description of each as one here."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import MarianConfig, MarianMTModel, PreTrainedModel, T5Config, T5ForConditionalGeneration

from scaletrain.checkpoint.weights import load_weights
from scaletrain.convert.checkpoint_tensors import CheckpointTensors, find_checkpoint
from scaletrain.model.build import build_model
from scaletrain.model.encoder_decoder import EncoderDecoder
from tests.convert.tiny_models import VOCAB, tokenizer

START_ID, EOS_ID = 7, 0
"""What a decoder reads first, and what ends a text: in most models they are not the same."""

T5 = {
    "vocab_size": VOCAB,
    "d_model": 48,
    "d_kv": 10,
    "d_ff": 80,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "decoder_start_token_id": START_ID,
    "eos_token_id": EOS_ID,
    "pad_token_id": EOS_ID,
}
MARIAN = {
    "vocab_size": VOCAB,
    "d_model": 48,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 80,
    "decoder_ffn_dim": 80,
    "max_position_embeddings": 64,
    "activation_function": "relu",
    "scale_embedding": True,
    "init_std": 0.2,
    "decoder_start_token_id": START_ID,
    "eos_token_id": EOS_ID,
    "pad_token_id": EOS_ID,
    "forced_eos_token_id": None,
}
MODELS: dict[str, dict[str, Any]] = {
    "t5": T5,
    "t5 1.1": T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "t5 with swiglu": T5 | {"feed_forward_proj": "gated-silu"},
    "t5 with gelu": T5 | {"feed_forward_proj": "gelu_new", "num_decoder_layers": 2},
    "marian": MARIAN,
    "marian with gelu": MARIAN | {"activation_function": "gelu", "decoder_layers": 2},
}

_LOUDER = {".o.weight": 5.0, ".wo.weight": 5.0}


def save(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Saves a model with a tokenizer, and gives it back.

    Args:
        name: One of ``MODELS``.
        folder: To be made.
        dtype: Of its weights.
    """
    torch.manual_seed(0)
    options = MODELS[name]
    if name.startswith("marian"):
        model: PreTrainedModel = MarianMTModel(MarianConfig(**options)).eval()
        model.final_logits_bias.normal_(0.0, 0.3)
    else:
        model = T5ForConditionalGeneration(T5Config(**options)).eval()
    is_tied = options.get("tie_word_embeddings", True)
    if not is_tied:  # which this version does always, unless a folder has both
        model.lm_head.weight = nn.Parameter(torch.randn(VOCAB, 48) * 0.2)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("layer_norm.weight"):
                parameter.normal_(1.0, 0.2)
            elif parameter_name.endswith(".bias"):
                parameter.normal_(0.0, 0.05)
            elif "relative_attention_bias" in parameter_name:
                parameter.normal_(0.0, 2.0)
            else:  # or a text would repeat its first token, whatever the source is
                parameter.mul_(next((by for end, by in _LOUDER.items() if parameter_name.endswith(end)), 1.0))
    model.to(dtype).save_pretrained(folder)
    if not is_tied:
        change_config(folder, tie_word_embeddings=False)
    tokenizer().save(str(folder / "tokenizer.json"))
    return model


def change_config(folder: Path, **changes: object) -> None:
    """Changes ``config.json`` of a folder."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def start_of(folder: Path) -> CheckpointTensors:
    """The checkpoint of a start."""
    return CheckpointTensors(find_checkpoint(folder))


def ours(start: Path) -> EncoderDecoder:
    """The model of a start."""
    model = build_model(start_of(start).config)
    assert isinstance(model, EncoderDecoder)
    model.load_state_dict(load_weights(start / "checkpoints"))
    return model.eval()
