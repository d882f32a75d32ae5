"""Tiny models of each architecture that GGUF can carry, trained until they are sure of what comes next."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch.nn import functional

from scaletrain.checkpoint.commit import commit
from scaletrain.checkpoint.layout import CONFIG, STATE, folder_name, partial_name
from scaletrain.checkpoint.writing import write_part
from scaletrain.config.load import dump_yaml
from scaletrain.config.schema import ModelConfig, RunConfig
from scaletrain.data.tokenizer import END_OF_TEXT, train_byte_level_bpe
from scaletrain.model.transformer import Transformer
from scaletrain.protocols import Fragment, SavedPart

TEXTS = (
    "The river runs past the old mill and down to the sea.\n",
    "def add(a, b):\n    return a + b\n",
    "Ein Fluss fließt 12345 Meter weit; naïve 😀 café.\n",
    "Seven geese fly over the frozen lake at dawn, and nobody counts them.\n",
)
PROMPTS = ("The river", "def add(", "Ein Fluss fließt", "Seven geese fly over the frozen lake at")
_LEARNED_LEN, _STEPS = 40, 60

_BASE: dict[str, Any] = {"vocab_size": 328, "d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 128}
LLAMA: dict[str, Any] = {
    **_BASE,
    "d_ff": 128,
    "n_kv_heads": 2,
    "positions": "rotary",
    "norm": "rms_norm",
    "activation": "swiglu",
    "bias": False,
    "tie_embeddings": False,
}
_LLAMA3_SCALING = {
    "rope_scaling": "llama3",
    "rope_theta": 500.0,
    "rope_factor": 8.0,
    "rope_original_max_seq_len": 32,
}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "llama with wide heads": {**LLAMA, "head_dim": 32, "rope_scaling": "linear", "rope_factor": 4.0},
    "llama 3.1": {**LLAMA, **_LLAMA3_SCALING, "tie_embeddings": True},
    "llama with biases": {
        **LLAMA,
        "bias": True,
        "n_kv_heads": 4,
        "d_ff": 132,
    },  # 528 bytes of bias are filled up to 544
    "qwen2": {**LLAMA, "qkv_bias": True, "tie_embeddings": True},
    "qwen3": {**LLAMA, "qk_norm": True, "head_dim": 32, "norm_eps": 1e-2},
    "gpt2": {**_BASE, "d_ff": 192, "norm_eps": 1e-2},
}


def small_tokenizer() -> Tokenizer:
    """A tokenizer of the texts, with fewer tokens than the models have rows."""
    return train_byte_level_bpe(TEXTS * 3, vocab_size=320)


def train(shape: dict[str, Any], tokenizer: Tokenizer) -> Transformer:
    """Trains a model on the texts until it knows them by heart."""
    torch.manual_seed(0)
    model = Transformer(ModelConfig(**shape, init_std=0.08))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:  # norms and biases that differ from their initial values, lest one be left out
                weight.add_(torch.randn_like(weight), alpha=0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    end = tokenizer.token_to_id(END_OF_TEXT)
    stream = torch.tensor([token for text in TEXTS * 4 for token in [*tokenizer.encode(text).ids, end]])
    windows = stream.unfold(0, _LEARNED_LEN + 1, 1)
    for _ in range(_STEPS):
        batch = windows[torch.randint(len(windows), (8,))]
        loss = functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def save(run_dir: Path, model: Transformer, tokenizer: Tokenizer, bos_id: int | None = None) -> Path:
    """Writes a run as one rank without ZeRO does.

    Returns:
        Its checkpoint's folder.
    """
    partial, name = run_dir / "checkpoints" / partial_name(5), "mp_rank_00_model_states.pt"
    partial.mkdir(parents=True)
    tokenizer.save(str(run_dir / "tokenizer.json"))
    (run_dir / "corpus.json").write_text(json.dumps({"eos_id": 0, "bos_id": bos_id}))
    weights = {f"model.{name}": weight.detach() for name, weight in model.named_parameters()}
    fragments = [Fragment(key, 0, weight.numel(), 0, 0) for key, weight in weights.items()]
    shapes = {key: list(weight.shape) for key, weight in weights.items()}
    tied = {"model.output.weight": "model.embedding.weight"} if model.config.tie_embeddings else {}
    part = SavedPart({name: {"module": weights}}, name, fragments, {"zero_stage": 0, "shapes": shapes, "tied": tied})
    texts = {STATE: json.dumps({"engine": part.state}), CONFIG: dump_yaml(RunConfig(model=model.config))}
    records = write_part(partial, 0, part, texts)
    folder = run_dir / "checkpoints" / folder_name(5)
    commit(partial, folder, records)
    return folder
