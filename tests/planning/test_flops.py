"""Operations counted from a description are those that torch counts while it runs."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from scaletrain.config.schema import ModelConfig
from scaletrain.model.transformer import Transformer
from scaletrain.planning.flops import flops_per_token, training_time_s


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


def test_gpt3_takes_the_operations_that_its_paper_prints() -> None:
    gpt3 = ModelConfig(vocab_size=50257, d_model=12288, n_layers=96, n_heads=96, max_seq_len=2048)
    # Table D.1: 3.14e23 for 300 billion tokens; the paper leaves the attention scores out (3 % here).
    assert flops_per_token(gpt3, 2048) * 300e9 == pytest.approx(3.14e23, rel=0.05)


def test_time_is_operations_over_what_is_reached() -> None:
    assert training_time_s(1e15, peak_flops_per_s=1e12, mfu=0.5) == 2000
