"""What decays, and one step of each optimizer against its formula."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from scaletrain.config.schema import ModelConfig, OptimConfig
from scaletrain.model.transformer import Transformer
from scaletrain.optim.optimizers import build_optimizer, lr_scales, parameter_groups

LR, DECAY, EPS, BETAS = 0.01, 0.1, 1e-6, (0.9, 0.99)


def names_of(groups: list[dict[str, Any]], model: nn.Module) -> dict[float, set[str]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {group["weight_decay"]: {names[id(parameter)] for parameter in group["params"]} for group in groups}


@pytest.mark.parametrize("tied", [True, False])
def test_matrices_decay_and_vectors_and_positions_do_not(tied: bool) -> None:
    shape = {"vocab_size": 50, "d_model": 16, "n_layers": 1, "n_heads": 2, "max_seq_len": 8}
    model = Transformer(ModelConfig(**shape, positions="learned", bias=True, tie_embeddings=tied))
    groups = names_of(parameter_groups(model.named_parameters(), DECAY), model)
    assert groups[DECAY] | groups[0.0] == {name for name, _ in model.named_parameters()}
    assert not groups[DECAY] & groups[0.0]
    assert all("bias" not in name and "norm" not in name and "position" not in name for name in groups[DECAY])
    assert "embedding.weight" in groups[DECAY]
    assert all(name.endswith("bias") or "norm" in name or "position" in name for name in groups[0.0])
    assert any("position" in name for name in groups[0.0])


def test_frozen_parameters_and_empty_groups_are_left_out() -> None:
    model = nn.Linear(3, 4, bias=False)
    assert len(parameter_groups(model.named_parameters(), DECAY)) == 1
    model.weight.requires_grad_(False)
    assert parameter_groups(model.named_parameters(), DECAY) == []


def stepped(name: str, steps: int, **fields: Any) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Weights before, after each step, and the gradients of the steps; for a matrix with decay."""
    generator = torch.Generator().manual_seed(3)
    weight = nn.Parameter(torch.randn(5, 7, generator=generator))
    optim = OptimConfig(name=name, lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY, **fields)
    optimizer = build_optimizer(optim, parameter_groups([("w", weight)], optim.weight_decay))
    weights, gradients = [weight.detach().clone()], []
    for _ in range(steps):
        gradients.append(torch.randn(5, 7, generator=generator))
        weight.grad = gradients[-1].clone()
        optimizer.step()
        weights.append(weight.detach().clone())
    return weights, gradients


@pytest.mark.parametrize("name", ["adamw", "adam"])
def test_two_steps_of_adam(name: str) -> None:
    weights, gradients = stepped(name, 2)
    weight = weights[0].double()
    first, second = torch.zeros_like(weight), torch.zeros_like(weight)
    for count, raw in enumerate(gradients, start=1):
        # Decoupled decay shrinks the weight; the coupled one is a part of the gradient and of its moments.
        gradient = raw.double() if name == "adamw" else raw.double() + DECAY * weight
        if name == "adamw":
            weight = weight * (1 - LR * DECAY)
        first = BETAS[0] * first + (1 - BETAS[0]) * gradient
        second = BETAS[1] * second + (1 - BETAS[1]) * gradient.square()
        mean, square = first / (1 - BETAS[0] ** count), second / (1 - BETAS[1] ** count)
        weight = weight - LR * mean / (square.sqrt() + EPS)
        torch.testing.assert_close(weights[count].double(), weight, atol=1e-6, rtol=1e-5)


def test_two_steps_of_sgd() -> None:
    weights, gradients = stepped("sgd", 2, momentum=0.8)
    weight = weights[0].double()
    velocity = torch.zeros_like(weight)
    for count, raw in enumerate(gradients, start=1):
        velocity = 0.8 * velocity + raw.double() + DECAY * weight
        weight = weight - LR * velocity
        torch.testing.assert_close(weights[count].double(), weight, atol=1e-6, rtol=1e-5)


def test_the_kinds_of_adam_differ_by_how_they_decay() -> None:
    ends = {name: stepped(name, 2)[0][-1] for name in ("adamw", "adam", "sgd")}
    assert not torch.allclose(ends["adamw"], ends["adam"]) and math.isfinite(float(ends["sgd"].sum()))


def test_layers_learn_slower_the_lower_they_are() -> None:
    shape = {"vocab_size": 50, "d_model": 16, "n_layers": 3, "n_heads": 2, "max_seq_len": 8, "n_segments": 2}
    heads = {"pooler": True, "n_classes": 4, "embedding_norm": True, "tie_embeddings": False, "causal": False}
    model = Transformer(ModelConfig(**shape, **heads))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        names[id(parameter)]: group["lr_scale"]
        for group in parameter_groups(model.named_parameters(), DECAY, layer_decay=0.5)
        for parameter in group["params"]
    }
    # By hand: what stands at the top of each row learns twice as fast as the row below.
    table = {
        1.0: ("norm.", "output.", "pooler.", "classifier."),
        0.5: ("blocks.2.",),
        0.25: ("blocks.1.",),
        0.125: ("blocks.0.",),
        0.0625: ("embedding.", "position_embedding.", "segment_embedding.", "embedding_norm."),
    }
    expected = {name: scale for name in names.values() for scale, tops in table.items() if name.startswith(tops)}
    assert found == expected and len(found) == len(names)


def test_each_stack_counts_from_its_own_top() -> None:
    names = ["encoder.blocks.0.a", "encoder.blocks.1.a", "decoder.blocks.0.a", "decoder.blocks.2.a", "output.weight"]
    assert list(lr_scales(names, 0.5).values()) == [0.25, 0.5, 0.125, 0.5, 1.0]
