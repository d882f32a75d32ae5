"""What happens to weights right after each update: the proximal step of L1, and the moving average.

It hangs on torch's optimizer. DeepSpeed calls that on the fp32 weights that a rank owns, whatever the ZeRO stage,
before it rounds them for the next forward pass; a step that is left out does not reach it.
"""

from typing import Any

import torch
from torch import Tensor

from scaletrain.protocols import EMA


def add_after_step(optimizer: torch.optim.Optimizer) -> None:
    """Has an optimizer do what its groups ask for, after each of its steps.

    Args:
        optimizer: Its groups may have ``l1``, the coefficient of the norm, and ``ema_decay``, the share of the average
            that stays at each step.
    """
    optimizer.register_step_post_hook(_after_step)


@torch.no_grad()
def _after_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if group.get("l1"):
                soft_threshold_(weight, group["lr"] * group["l1"])
            if group.get("ema_decay"):
                _average(optimizer.state[weight], weight, group["ema_decay"])


def soft_threshold_(weight: Tensor, threshold: float) -> None:
    """Moves numbers towards zero, in place, and makes those zero that would pass it.

    Source: Parikh and Boyd 2014, "Proximal Algorithms", section 6.5.2.

    Args:
        weight: Any shape.
        threshold: How far.
    """
    weight.copy_(torch.nn.functional.softshrink(weight, threshold))


def _average(state: dict[str, Any], weight: Tensor, decay: float) -> None:
    """Updates the average; it begins with the weights after the first update."""
    if EMA in state:
        state[EMA].lerp_(weight, 1 - decay)
    else:
        state[EMA] = weight.detach().clone()
