"""Parameter groups and optimizers."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from scaletrain.config.schema import OptimConfig


def parameter_groups(named_parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict[str, Any]]:
    """Splits parameters into those that decay and those that do not.

    Matrices of linear layers and token embeddings decay. Vectors (biases, gains of norms) and learned
    positions do not: pulling them to zero changes what they mean and gains nothing.

    Args:
        named_parameters: As ``module.named_parameters()`` gives them: a tied tensor once.
        weight_decay: Coefficient of the first group.

    Returns:
        At most two groups for a torch optimizer; an empty group is left out.
    """
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in named_parameters:
        if not parameter.requires_grad:
            continue
        # Under ZeRO-3 a parameter is empty here and its true shape stands in ds_shape.
        n_dims = len(getattr(parameter, "ds_shape", parameter.shape))
        (decayed if n_dims >= 2 and "position" not in name else kept).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_optimizer(optim: OptimConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Makes the torch optimizer that DeepSpeed then shards.

    Args:
        optim: Names the optimizer and its parameters. ``adamw`` decays decoupled from the gradient
            (Loshchilov and Hutter 2019, arXiv 1711.05101); ``adam`` and ``sgd`` add the coupled L2 gradient.
        groups: As from ``parameter_groups``.

    Returns:
        The optimizer, with the fused kernel of the device.
    """
    if optim.name == "sgd":
        return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum, fused=True)
    kind = torch.optim.AdamW if optim.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True)
