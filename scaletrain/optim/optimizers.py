"""Parameter groups and optimizers."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from scaletrain.config.schema import OptimConfig
from scaletrain.optim.after_step import add_after_step

# The stack, and the number of the layer in it.
_BLOCK = re.compile(r"(.*?(?:blocks|layers))\.(\d+)\.")


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Splits parameters into those that decay and those that do not, and by layers where these learn unequally fast.

    Matrices of linear layers and token embeddings decay. Vectors (biases, gains of norms) and learned
    positions do not: pulling them to zero changes what they mean and gains nothing.

    Args:
        named_parameters: As ``module.named_parameters()`` gives them: a tied tensor once.
        weight_decay: Coefficient of the matrices.
        layer_decay: Factor of the learning rate from each layer to the one below it; see ``lr_scales``.

    Returns:
        Groups for a torch optimizer, at most two for each learning rate, without empty ones. Their ``lr_scale`` is
        what the schedule's learning rate is multiplied by.
    """
    trained = [(name, parameter) for name, parameter in named_parameters if parameter.requires_grad]
    scales = lr_scales([name for name, _ in trained], layer_decay)
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for scale in sorted(set(scales.values()), reverse=True):
        groups[scale, True] = {
            "params": [],
            "weight_decay": weight_decay,
            "lr_scale": scale,
            "is_matrix": True,
        }
        groups[scale, False] = {"params": [], "weight_decay": 0.0, "lr_scale": scale, "is_matrix": False}
    for name, parameter in trained:
        # Under ZeRO-3 a parameter is empty here and its true shape stands in ds_shape.
        n_dims = len(getattr(parameter, "ds_shape", parameter.shape))
        groups[scales[name], n_dims >= 2 and "position" not in name]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


def lr_scales(names: Sequence[str], layer_decay: float) -> dict[str, float]:
    """Shares of the learning rate: 1 at the top, less by one factor for each layer further down.

    Embeddings are below the first block, and what is above the last one (norm, output, heads) learns at the full rate.
    An encoder and a decoder count from their own tops.

    Args:
        names: Of the parameters.
        layer_decay: The factor, 1 for all alike.

    Returns:
        The share of each.

    Source:
        Clark et al. 2020, "ELECTRA", section 3.1; the numbering is that of BEiT (Bao et al. 2021).
    """
    places = {name: (found[1], int(found[2])) for name in names if (found := _BLOCK.match(name))}
    layers: dict[str, int] = {}
    for stack, layer in places.values():
        layers[stack] = max(layers.get(stack, 0), layer + 1)

    def layers_above(name: str) -> int:
        if name in places:
            stack, layer = places[name]
            return layers[stack] - layer
        return max(layers.values(), default=0) + 1 if "embedding" in name else 0

    return {name: float(layer_decay ** layers_above(name)) for name in names}


def build_optimizer(optim: OptimConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Makes the torch optimizer that DeepSpeed then shards.

    Args:
        optim: Names the optimizer and its parameters. ``adamw`` decays decoupled from the gradient
            (Loshchilov and Hutter 2019, arXiv 1711.05101); ``adam`` and ``sgd`` add the coupled L2 gradient.
        groups: As from ``parameter_groups``.

    Returns:
        The optimizer, with the fused kernel of the device. L1 shrinks what decays: matrices.
    """
    asked = [group | {"l1": optim.l1 * group["is_matrix"], "ema_decay": optim.ema_decay} for group in groups]
    optimizer: torch.optim.Optimizer
    if optim.name == "sgd":
        optimizer = torch.optim.SGD(asked, lr=optim.lr, momentum=optim.momentum, fused=True)
    else:
        kind = torch.optim.AdamW if optim.name == "adamw" else torch.optim.Adam
        optimizer = kind(asked, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True)
    if optim.l1 or optim.ema_decay:
        add_after_step(optimizer)
    return optimizer
