"""L1 and the moving average against plain loops, and against torch's own average."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from scaletrain.config.schema import OptimConfig
from scaletrain.optim.optimizers import build_optimizer, parameter_groups
from scaletrain.protocols import EMA

LR, L1, DECAY, STEPS = 0.05, 0.4, 0.9, 6


def model_and_optimizer(name: str, **fields: Any) -> tuple[nn.Linear, torch.optim.Optimizer]:
    torch.manual_seed(1)
    model = nn.Linear(7, 5)
    optim = OptimConfig(name=name, lr=LR, weight_decay=0.1, **fields)
    groups = parameter_groups(model.named_parameters(), optim.weight_decay)
    return model, build_optimizer(optim, groups)


def step(model: nn.Linear, optimizer: torch.optim.Optimizer, number: int) -> None:
    generator = torch.Generator().manual_seed(number)
    for parameter in model.parameters():
        parameter.grad = 0.1 * torch.randn(parameter.shape, generator=generator)
    optimizer.step()


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_l1_is_a_step_of_the_optimizer_and_then_one_towards_zero(name: str) -> None:
    model, optimizer = model_and_optimizer(name, l1=L1)
    plain, plain_optimizer = model_and_optimizer(name)
    for number in range(STEPS):
        step(model, optimizer, number)
        step(plain, plain_optimizer, number)
        with torch.no_grad():
            for row in plain.weight:
                for place, value in enumerate(row.tolist()):
                    shrunk = max(abs(value) - LR * L1, 0.0)
                    row[place] = shrunk if value > 0 else -shrunk
        torch.testing.assert_close(model.weight, plain.weight, atol=1e-7, rtol=1e-6)
        assert (model.weight == 0).equal(plain.weight == 0)
        assert model.bias.equal(plain.bias), "vectors are left alone"
    assert 0 < int((model.weight == 0).sum()) < model.weight.numel(), "zeros are zero, and not all are"


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_the_average_is_that_of_a_plain_loop_and_of_torch(name: str) -> None:
    model, optimizer = model_and_optimizer(name, ema_decay=DECAY, momentum=0.0)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    plain: Tensor | None = None
    for number in range(STEPS):
        step(model, optimizer, number)
        theirs.update_parameters(model)
        weight = model.weight.detach().double()
        plain = weight.clone() if plain is None else DECAY * plain + (1 - DECAY) * weight
        average = optimizer.state[model.weight][EMA]
        assert average.dtype == torch.float32
        torch.testing.assert_close(average.double(), plain, atol=1e-7, rtol=1e-6)
        torch.testing.assert_close(average, theirs.module.weight.detach(), atol=1e-7, rtol=1e-6)
        torch.testing.assert_close(optimizer.state[model.bias][EMA], theirs.module.bias.detach(), atol=1e-7, rtol=1e-6)
    assert not average.allclose(model.weight, atol=1e-3)


def test_the_average_follows_what_l1_has_made() -> None:
    model, optimizer = model_and_optimizer("adamw", l1=50.0, ema_decay=DECAY)
    step(model, optimizer, 0)
    assert not model.weight.any() and not optimizer.state[model.weight][EMA].any()
