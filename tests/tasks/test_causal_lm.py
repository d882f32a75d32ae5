"""The task's loss is the sum of the cross-entropies of the next tokens."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from scaletrain.config.schema import LossConfig, ModelConfig
from scaletrain.model.transformer import Transformer
from scaletrain.tasks.causal_lm import CausalLM

VOCAB, ROWS, TIME = 37, 3, 16


@pytest.fixture
def model() -> Transformer:
    torch.manual_seed(0)
    return Transformer(ModelConfig(vocab_size=VOCAB, d_model=16, n_layers=1, n_heads=2, max_seq_len=TIME, init_std=0.5))


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, VOCAB, (ROWS, TIME + 1), generator=generator)
    targets = tokens[:, 1:].clone()
    targets[0, :5] = -100
    return {"tokens": tokens[:, :-1], "targets": targets}


def reference(model: Transformer, batch: dict[str, torch.Tensor], smoothing: float) -> torch.Tensor:
    logits = model(batch["tokens"]).flatten(0, 1)
    options = {"ignore_index": -100, "label_smoothing": smoothing, "reduction": "none"}
    return cross_entropy(logits, batch["targets"].flatten(), **options).view(ROWS, TIME).sum(1)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_and_its_gradient_are_those_of_torch(
    model: Transformer, batch: dict[str, torch.Tensor], smoothing: float
) -> None:
    terms = CausalLM(model, LossConfig(label_smoothing=smoothing))(**batch)
    terms.loss_sum.backward()
    found = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    expected = reference(model, batch, smoothing).sum()
    expected.backward()
    torch.testing.assert_close(terms.loss_sum, expected)
    torch.testing.assert_close(terms.nll_B, reference(model, batch, 0.0))
    assert terms.targets_B.tolist() == [TIME - 5, TIME, TIME]
    torch.testing.assert_close(found, [parameter.grad for parameter in model.parameters()])


def test_evaluation_is_without_the_terms_added_for_training(model: Transformer, batch: dict[str, torch.Tensor]) -> None:
    task = CausalLM(model, LossConfig(label_smoothing=0.2, z_loss=0.1))
    training = task(**batch)
    assert float(training.loss_sum.detach()) > float(training.nll_B.sum()) + 1
    with torch.no_grad():
        evaluated = task.eval()(**batch)
    assert evaluated.nll_B.equal(training.nll_B)
    torch.testing.assert_close(evaluated.loss_sum, evaluated.nll_B.sum())


def test_targets_of_another_document_are_out_of_reach(model: Transformer, batch: dict[str, torch.Tensor]) -> None:
    documents = (torch.arange(TIME) >= 9).int().expand(ROWS, TIME)
    positions = torch.where(documents == 1, torch.arange(TIME) - 9, torch.arange(TIME))
    second = batch["targets"].clone()
    second[:, :9] = -100
    task = CausalLM(model, LossConfig())
    losses = []
    for first_document in (0, 7):
        tokens = batch["tokens"].clone()
        tokens[:, :9] = first_document
        losses.append(float(task(tokens, second, documents, positions).nll_B.sum()))
    assert losses[0] == losses[1]
