"""Tiny random models of transformers, and the same weights under our names, renamed by hand.

By hand, so that what is tested here does not stand on the tables of ``scaletrain/convert/families``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from scaletrain.config.schema import ModelConfig
from scaletrain.convert.safetensors_files import SafetensorsFolder

V, T, D, N, K, H, F, LAYERS = 97, 160, 48, 4, 2, 12, 80, 3

LLAMA = {
    "vocab_size": V,
    "hidden_size": D,
    "intermediate_size": F,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": N,
    "num_key_value_heads": K,
    "max_position_embeddings": T,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
LARGE = {"hidden_size": 512, "intermediate_size": 1536}
OUR_SIZES: dict[str, Any] = {"vocab_size": V, "max_seq_len": T, "d_model": D, "n_layers": LAYERS, "n_heads": N}
OUR_LLAMA: dict[str, Any] = OUR_SIZES | {
    "d_ff": F,
    "n_kv_heads": K,
    "positions": "rotary",
    "norm": "rms_norm",
    "activation": "swiglu",
    "bias": False,
    "tie_embeddings": False,
}
OUR_BERT: dict[str, Any] = OUR_SIZES | {
    "d_ff": F,
    "norm_eps": 1e-12,
    "norm_position": "post",
    "embedding_norm": True,
    "causal": False,
    "n_segments": 2,
    "activation": "gelu",
}
BERT = {
    "vocab_size": V,
    "hidden_size": D,
    "intermediate_size": F,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": N,
    "max_position_embeddings": T,
}


@dataclass
class Renamed:
    """A model of transformers in a folder, and its weights under our names."""

    hf_folder: Path
    config: ModelConfig
    weights: dict[str, Tensor]

    def tensors(self, folder: Path) -> SafetensorsFolder:
        """Our weights in a file."""
        folder.mkdir()
        save_file({name: tensor.contiguous() for name, tensor in self.weights.items()}, folder / "model.safetensors")
        return SafetensorsFolder(folder)


FAMILIES = {
    "gpt2": lambda: (
        transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=V, n_positions=T, n_embd=D, n_layer=LAYERS, n_head=N)
        ),
        ModelConfig(**OUR_SIZES),
    ),
    "gpt_neox": lambda: (
        transformers.GPTNeoXForCausalLM(
            transformers.GPTNeoXConfig(
                vocab_size=V,
                hidden_size=D,
                intermediate_size=F,
                num_hidden_layers=LAYERS,
                num_attention_heads=N,
                max_position_embeddings=T,
                rotary_pct=0.5,
            )
        ),
        ModelConfig(
            **OUR_SIZES,
            d_ff=F,
            positions="rotary",
            rotary_dim=H // 2,
            parallel_residual=True,
            activation="gelu",
            tie_embeddings=False,
        ),
    ),
    "llama": lambda: (
        transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)),
        ModelConfig(**OUR_LLAMA),
    ),
    "mistral": lambda: (
        transformers.MistralForCausalLM(transformers.MistralConfig(**LLAMA, sliding_window=33)),
        ModelConfig(**OUR_LLAMA, sliding_window=33),
    ),
    "qwen2": lambda: (
        transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**LLAMA)),
        ModelConfig(**OUR_LLAMA, qkv_bias=True),
    ),
    "qwen3": lambda: (
        transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**LLAMA, head_dim=16)),
        ModelConfig(**OUR_LLAMA, head_dim=16, qk_norm=True),
    ),
    "bert": lambda: (
        transformers.BertForPreTraining(transformers.BertConfig(**BERT)),
        ModelConfig(**OUR_BERT, output_transform=True, output_bias=True, pooler=True, n_classes=2),
    ),
    "bert_masked": lambda: (
        transformers.BertForMaskedLM(transformers.BertConfig(**BERT)),
        ModelConfig(**OUR_BERT, output_transform=True, output_bias=True),
    ),
    "bert_bare": lambda: (
        transformers.BertModel(transformers.BertConfig(**BERT)),
        ModelConfig(**OUR_BERT, pooler=True),
    ),
    "bert_classes": lambda: (
        transformers.BertForSequenceClassification(transformers.BertConfig(**BERT, num_labels=5)),
        ModelConfig(**OUR_BERT, pooler=True, n_classes=5),
    ),
}

# For a single test each.
OTHERS = {
    "one_large_layer": lambda: (
        transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA | LARGE | {"num_hidden_layers": 1})),
        ModelConfig(**OUR_LLAMA | {"d_model": 512, "d_ff": 1536, "n_layers": 1}),
    ),
    "sixteen_large_layers": lambda: (
        transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA | LARGE | {"num_hidden_layers": 16})),
        ModelConfig(**OUR_LLAMA | {"d_model": 512, "d_ff": 1536, "n_layers": 16}),
    ),
    "wide_llama": lambda: (
        transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA | {"vocab_size": 300})),
        ModelConfig(**OUR_LLAMA | {"vocab_size": 300}),
    ),
}


def make(family: str, folder: Path, dtype: torch.dtype = torch.float32) -> Renamed:
    """Makes a random model of a family, and saves it.

    Args:
        family: One of ``FAMILIES`` or ``OTHERS``.
        folder: Where to; it is made.
        dtype: What the folder stores; our weights stay in fp32.

    Returns:
        Both forms.
    """
    model, config = (FAMILIES | OTHERS)[family]()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Wide enough for each head to choose, with biases and norms that are all different.
            is_scale = ("norm" in name.lower() and name.endswith("weight")) or "ln_" in name
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.1 * noise if is_scale else 1.7 / config.d_model**0.5 * noise)
    weights = dict(rename(family, model.state_dict()))
    weights = {name: tensor.clone() for name, tensor in weights.items()}
    model.to(dtype).save_pretrained(folder)
    return Renamed(folder, config, weights)


def rename(family: str, state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Our names and layouts of a state dictionary of transformers."""
    names = {"gpt2": GPT2_NAMES, "gpt_neox": NEOX_NAMES}.get(family, BERT_NAMES if "bert" in family else LLAMA_NAMES)
    for name, tensor in state.items():
        for there, here in names.items():
            name = name.replace(there, here)
        if name == "output.weight" and family in ("gpt2", "bert", "bert_masked"):
            continue  # tied
        if family == "gpt2" and name.startswith("blocks.") and name.endswith(".weight") and tensor.dim() == 2:
            tensor = tensor.mT  # stored input by output
        if name.startswith("masked_lm"):
            continue  # a second name of the output's bias
        if ".attention.qkv." not in name:
            yield name, tensor
        elif family == "gpt2":
            yield from ((name.replace("qkv", kind), part) for kind, part in zip("qkv", tensor.chunk(3), strict=True))
        else:  # the three of each head lie together
            heads = tensor.unflatten(0, (N, 3, H))
            yield from ((name.replace("qkv", kind), heads[:, i].flatten(0, 1)) for i, kind in enumerate("qkv"))


GPT2_NAMES = {
    "transformer.wte": "embedding",
    "transformer.wpe": "position_embedding",
    "transformer.ln_f": "norm",
    "transformer.h.": "blocks.",
    "attn.c_attn": "attention.qkv",
    "attn.c_proj": "attention.out",
    "mlp.c_fc": "feed_forward.up",
    "mlp.c_proj": "feed_forward.down",
    "ln_1": "attention_norm",
    "ln_2": "feed_forward_norm",
    "lm_head": "output",
}
NEOX_NAMES = {
    "gpt_neox.embed_in": "embedding",
    "gpt_neox.final_layer_norm": "norm",
    "gpt_neox.layers.": "blocks.",
    "attention.query_key_value": "attention.qkv",
    "attention.dense": "attention.out",
    "mlp.dense_h_to_4h": "feed_forward.up",
    "mlp.dense_4h_to_h": "feed_forward.down",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "feed_forward_norm",
    "embed_out": "output",
    "lm_head": "output",
}
LLAMA_NAMES = {
    "model.layers.": "blocks.",
    "model.embed_tokens": "embedding",
    "model.norm": "norm",
    "lm_head": "output",
    "self_attn.o_proj": "attention.out",
    "self_attn.": "attention.",
    "post_attention_layernorm": "feed_forward_norm",
    "input_layernorm": "attention_norm",
    "mlp.": "feed_forward.",
    "_proj": "",
}
BERT_NAMES = {
    "bert.": "",
    "embeddings.word_embeddings": "embedding",
    "embeddings.position_embeddings": "position_embedding",
    "embeddings.token_type_embeddings": "segment_embedding",
    "embeddings.LayerNorm": "embedding_norm",
    "encoder.layer.": "blocks.",
    "attention.self.query": "attention.q",
    "attention.self.key": "attention.k",
    "attention.self.value": "attention.v",
    "attention.output.dense": "attention.out",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "feed_forward.up",
    "output.dense": "feed_forward.down",
    "output.LayerNorm": "feed_forward_norm",
    "pooler.dense": "pooler",
    "cls.seq_relationship": "classifier",
    "cls.predictions.transform.dense": "output_transform.dense",
    "cls.predictions.transform.LayerNorm": "output_transform.norm",
    "cls.predictions.decoder": "output",
    "cls.predictions.bias": "masked_lm_bias",
}
