"""Gradients come in one order on all ranks, whatever they read.

ZeRO-2 reduces them in the order in which they come: were it another one on another rank, weights would be mixed up.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from scaletrain.config.schema import ModelConfig
from scaletrain.model.build import Seq2Seq, build_model

SMALL = {"vocab_size": 61, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 16}
SHAPES: dict[str, dict[str, Any]] = {
    "gpt": {},
    "rotary": {"positions": "rotary", "n_kv_heads": 2, "qk_norm": True},
    "relative": {"positions": "relative"},
    "window": {"sliding_window": 3},
    "bert": {"causal": False, "norm_position": "post", "embedding_norm": True, "n_segments": 2, "n_classes": 3},
    "mean": {"causal": False, "pooling": "mean", "pooler": True, "n_classes": 3},
    "encoder-decoder": {"n_encoder_layers": 2},
    "t5": {"n_encoder_layers": 2, "positions": "relative", "activation": "geglu"},
    "lstm": {"kind": "lstm"},
    "lstm both ways": {"kind": "lstm", "causal": False, "n_classes": 3},
    "lstm seq2seq": {"kind": "lstm", "n_encoder_layers": 2},
    "cnn": {"kind": "cnn", "n_classes": 3},
}
# Of three rows with ten places: what stands in each, and nothing said where nothing is padded.
LENGTHS = ([10, 4, 7], [1, 1, 1], [3, 10, 0], [10, 10, 10], None)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_order_does_not_depend_on_lengths(shape: str) -> None:
    model = build_model(ModelConfig(**SMALL, **SHAPES[shape]))
    came: list[str] = []
    for name, weight in model.named_parameters():
        weight.register_post_accumulate_grad_hook(lambda _, name=name: came.append(name))
    orders = []
    for lengths in LENGTHS:
        mask = None if lengths is None else torch.arange(10) < torch.tensor(lengths).unsqueeze(1)
        loss(model, torch.randint(61, (3, 10)), mask).backward()
        orders.append(tuple(came))
        came.clear()
    assert len(orders[0]) == len(set(orders[0])) > 3
    assert len(set(orders)) == 1


def loss(model: Any, tokens: Tensor, mask: Tensor | None) -> Tensor:
    if isinstance(model, Seq2Seq):
        result: Tensor = model(tokens, tokens, mask).sum()
        return result
    hidden = model.hidden(tokens, documents_BT=None if mask is None else (~mask).int())
    told: Tensor = model.class_logits(hidden, mask) if model.config.n_classes else model.logits(hidden)
    return told.sum()
