"""Operations counted from a description are those that torch counts while it runs."""

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from scaletrain.config.schema import ModelConfig, TaskConfig
from scaletrain.model.build import build_model
from scaletrain.model.transformer import Transformer
from scaletrain.planning.flops import flops_per_token, output_share, training_time_s


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"activation": "swiglu", "n_kv_heads": 2, "head_dim": 12, "d_ff": 24, "tie_embeddings": False},
    ],
    ids=["gpt", "llama"],
)
def test_the_count_is_what_torch_counts(shape: dict[str, object]) -> None:
    config = ModelConfig(vocab_size=50, d_model=32, n_layers=3, n_heads=4, max_seq_len=16, bias=False, **shape)
    model = Transformer(config)
    tokens = torch.zeros(2, 16, dtype=torch.long)
    # Of all kernels for attention only the plain products are counted, and these in full, as the convention has it.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(tokens).sum().backward()
    assert counter.get_total_flops() == flops_per_token(config, 16) * tokens.numel()


@pytest.mark.parametrize(("name", "hidden"), [("classification", 0), ("masked_lm", 4), ("causal_lm", 16)])
def test_a_task_counts_the_output_layer_where_it_computes_it(name: str, hidden: int) -> None:
    """Of the 16 tokens of a row, as many as are predicted from."""
    task = TaskConfig(name=name, mask_share=0.25)
    config = ModelConfig(vocab_size=50, d_model=32, n_layers=3, n_heads=4, max_seq_len=16, bias=False, causal=False)
    model = Transformer(config)
    tokens = torch.zeros(2, 16, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        hidden_BTD = model.hidden(tokens)
        (hidden_BTD.sum() + model.logits(hidden_BTD[:, :hidden]).sum()).backward()
    assert counter.get_total_flops() == flops_per_token(config, 16, output_share(task)) * tokens.numel()


SEQ2SEQ = {"n_encoder_layers": 2, "positions": "sinusoidal", "n_kv_heads": 2, "head_dim": 12, "activation": "relu"}


@pytest.mark.parametrize("shape", [SEQ2SEQ, {"kind": "lstm", "n_encoder_layers": 2}], ids=["transformer", "lstm"])
def test_the_count_of_a_source_and_a_text_is_what_torch_counts(shape: dict[str, Any]) -> None:
    config = ModelConfig(**{"vocab_size": 50, "d_model": 32, "n_layers": 3, "n_heads": 4, **shape})
    model = build_model(config)
    tokens = torch.zeros(2, 16, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(tokens, tokens).sum().backward()
    counted = counter.get_total_flops()
    if config.kind == "lstm":
        # torch counts no LSTM; what joins the two counts once a sequence. A layer has four gates of input and state.
        counted += 6 * tokens.numel() * (2 * 6 + 3 * 8) * 32**2 - 6 * len(tokens) * 3 * 32**2
    # A sequence is both: so it has twice as many tokens as its source.
    assert counted == flops_per_token(config, 32) * 2 * tokens.numel()


def test_the_count_of_an_lstm_is_that_of_its_products() -> None:
    config = ModelConfig(kind="lstm", vocab_size=50, d_model=32, n_layers=3)
    gates = 4 * (32 + 32) * 32
    assert flops_per_token(config, 16) == 6 * (3 * gates + 50 * 32)
    both = config.model_copy(update={"causal": False})
    assert flops_per_token(both, 16) == 6 * (3 * 2 * 4 * (32 + 16) * 16 + 50 * 32)


def test_the_count_of_a_cnn_is_what_torch_counts() -> None:
    config = ModelConfig(kind="cnn", vocab_size=50, d_model=32, d_ff=20, n_classes=2)
    model = build_model(config)
    tokens = torch.zeros(2, 16, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model.hidden(tokens).sum().backward()
    assert counter.get_total_flops() == flops_per_token(config, 16) * tokens.numel()


def test_gpt3_takes_the_operations_that_its_paper_prints() -> None:
    gpt3 = ModelConfig(vocab_size=50257, d_model=12288, n_layers=96, n_heads=96, max_seq_len=2048)
    # Table D.1: 3.14e23 for 300 billion tokens; the paper leaves the attention scores out (3 % here).
    assert flops_per_token(gpt3, 2048) * 300e9 == pytest.approx(3.14e23, rel=0.05)


def test_time_is_operations_over_what_is_reached() -> None:
    assert training_time_s(1e15, peak_flops_per_s=1e12, mfu=0.5) == 2000
