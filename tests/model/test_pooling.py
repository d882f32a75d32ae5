"""What stands for a whole sequence: the token that should, whatever padding holds."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scaletrain.config.schema import ModelConfig
from scaletrain.model.pooling import pool
from scaletrain.model.transformer import Transformer


@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4), seed=st.integers(0, 2**31))
def test_padding_has_no_part_in_it(lengths: list[int], seed: int) -> None:
    hidden = torch.randn(len(lengths), 6, 3, generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(6) < torch.tensor(lengths).unsqueeze(1)
    hidden[~mask] = torch.inf
    real = [row[:length] for row, length in zip(hidden, lengths, strict=True)]
    assert torch.equal(pool(hidden, mask, "first"), torch.stack([row[0] for row in real]))
    assert torch.equal(pool(hidden, mask, "last"), torch.stack([row[-1] for row in real]))
    torch.testing.assert_close(pool(hidden, mask, "mean"), torch.stack([row.mean(0) for row in real]))


@pytest.mark.parametrize("pooling", ["first", "mean", "last"])
def test_all_tokens_are_real_where_nothing_else_is_said(pooling: str) -> None:
    hidden = torch.randn(2, 5, 3)
    assert torch.equal(pool(hidden, None, pooling), pool(hidden, torch.ones(2, 5, dtype=torch.bool), pooling))
    assert pool(hidden, torch.zeros(2, 5, dtype=torch.bool), pooling).isfinite().all()


@pytest.mark.parametrize("pooling", ["first", "mean", "last"])
@pytest.mark.parametrize("pooler", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_padding_changes_no_class_and_gets_no_gradient(pooling: str, pooler: bool, causal: bool) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 61, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 16, "init_std": 0.2}
    config = ModelConfig(**sizes, causal=causal, pooling=pooling, pooler=pooler, n_classes=3)
    model = Transformer(config).eval()
    # Tokens of padding that stand nowhere else, so that their embeddings show a gradient.
    tokens, padding = torch.randint(50, (1, 7)), torch.randint(50, 61, (1, 5))
    mask = (torch.arange(12) < 7).unsqueeze(0)
    hidden = model.hidden(torch.cat((tokens, padding), 1), documents_BT=(~mask).int())
    found = model.class_logits(hidden, mask)
    torch.testing.assert_close(found, model.class_logits(model.hidden(tokens)), rtol=1e-5, atol=1e-5)
    found.square().sum().backward()
    gradient = model.embedding.weight.grad
    assert gradient is not None and gradient[:50].any() and not gradient[50:].any()


def test_dropout_stands_before_the_classes() -> None:
    torch.manual_seed(0)
    model = Transformer(ModelConfig(vocab_size=61, d_model=32, n_layers=1, n_heads=4, n_classes=3, dropout=0.5))
    with torch.no_grad():
        model.classifier.weight.fill_(1.0)
        hidden = torch.ones(400, 1, 32)
        dropped = model.class_logits(hidden)[:, 0]
        # 32 ones of which half stay, twice as large: 32 on average, with a variance of 32.
        assert dropped.mean().item() == pytest.approx(32, abs=1.5) and dropped.std().item() == pytest.approx(5.7, abs=1)
        assert torch.equal(model.eval().class_logits(hidden)[:, 0], torch.full((400,), 32.0))
