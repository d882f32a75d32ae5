"""The loss equals torch's, and what is not a target weighs nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from scaletrain.model import losses
from scaletrain.model.losses import IGNORED, cross_entropy_terms


def some_logits(rows: int, vocab_size: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(rows, vocab_size, generator=generator)).requires_grad_()


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 5),
    time=st.integers(1, 5),
    vocab_size=st.integers(2, 30),
    smoothing=st.sampled_from([0.0, 0.1, 0.9]),
    z_loss=st.sampled_from([0.0, 1e-4, 0.5]),
    seed=st.integers(0, 1000),
)
def test_sums_and_gradients_are_those_of_plain_autograd(
    rows: int, time: int, vocab_size: int, smoothing: float, z_loss: float, seed: int
) -> None:
    logits = some_logits(rows * time, vocab_size, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    targets = torch.randint(vocab_size, (rows * time,), generator=generator)
    targets[torch.rand(rows * time, generator=generator) < 0.3] = IGNORED
    counts = targets != IGNORED

    terms = cross_entropy_terms(logits.view(rows, time, -1), targets.view(rows, time), smoothing, z_loss)
    (gradient,) = torch.autograd.grad(2.5 * terms.loss_sum, logits)

    options = {"reduction": "sum", "ignore_index": IGNORED}
    expected = functional.cross_entropy(logits, targets, label_smoothing=smoothing, **options)
    expected = expected + z_loss * (logits.logsumexp(-1).square() * counts).sum()
    (expected_gradient,) = torch.autograd.grad(2.5 * expected, logits)
    torch.testing.assert_close(terms.loss_sum, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-5)
    nll = functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none").view(rows, time)
    torch.testing.assert_close(terms.nll_B, nll.sum(1), rtol=1e-5, atol=1e-5)
    assert terms.targets_B.equal(counts.view(rows, time).sum(1))
    assert not terms.nll_B.requires_grad


def test_without_targets_loss_and_gradient_are_zero() -> None:
    logits = some_logits(4, 9, 0)
    terms = cross_entropy_terms(logits, torch.full((4,), IGNORED), 0.1, 1e-4)
    terms.loss_sum.backward()
    assert [term.tolist() for term in terms[:3]] == [0.0, [0.0] * 4, [0] * 4]
    assert logits.grad is not None and not logits.grad.any()


def test_masked_rows_change_neither_the_loss_nor_other_gradients() -> None:
    logits, targets = some_logits(6, 9, 0), torch.tensor([1, 2, 3, IGNORED, IGNORED, IGNORED])
    cross_entropy_terms(logits, targets, 0.1, 1e-4).loss_sum.backward()
    alone = logits.detach()[:3].requires_grad_()
    cross_entropy_terms(alone, targets[:3], 0.1, 1e-4).loss_sum.backward()
    torch.testing.assert_close(logits.grad[:3], alone.grad)
    assert not logits.grad[3:].any()


def test_sums_of_bf16_logits_are_in_fp32_and_exact_to_its_precision() -> None:
    logits = some_logits(64, 50, 0).detach().bfloat16()
    targets = torch.arange(64) % 50
    terms = cross_entropy_terms(logits, targets)
    assert terms.loss_sum.dtype == terms.nll_B.dtype == torch.float32
    expected = functional.cross_entropy(logits.double(), targets, reduction="sum")
    assert terms.loss_sum.item() == pytest.approx(float(expected), rel=1e-6)


def test_many_chunks_give_what_one_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, targets = some_logits(23, 11, 0), torch.arange(23) % 11
    whole = cross_entropy_terms(logits, targets, 0.1, 1e-3).loss_sum
    (whole_gradient,) = torch.autograd.grad(whole, logits)
    monkeypatch.setattr(losses, "_CHUNK_NUMBERS", 40)
    parts = cross_entropy_terms(logits, targets, 0.1, 1e-3).loss_sum
    (parts_gradient,) = torch.autograd.grad(parts, logits)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(parts_gradient, whole_gradient)


def test_huge_logits_stay_finite() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    terms = cross_entropy_terms(logits, torch.tensor([1]))
    terms.loss_sum.backward()
    assert terms.loss_sum.item() == pytest.approx(2e4)
    assert logits.grad.isfinite().all()


def test_the_loss_compiles_to_one_graph_with_the_same_results() -> None:
    compiled = torch.compile(cross_entropy_terms, fullgraph=True, backend="aot_eager")
    logits, targets = some_logits(15, 11, 0), (torch.arange(15) % 11).view(3, 5)
    targets[1, :2] = IGNORED
    found, expected = (
        function(logits.view(3, 5, 11), targets, 0.1, 1e-3) for function in (compiled, cross_entropy_terms)
    )
    torch.testing.assert_close(tuple(found), tuple(expected))
    gradients = [torch.autograd.grad(terms.loss_sum, logits)[0] for terms in (found, expected)]
    torch.testing.assert_close(*gradients)
    assert not found.nll_B.requires_grad
