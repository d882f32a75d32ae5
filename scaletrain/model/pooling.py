"""What stands for a whole sequence, to tell its class or a number from.

Shapes: B batch, T time, D d_model.
"""

from typing import Literal

import torch
from torch import Tensor

Pooling = Literal["first", "mean", "last"]


def pool(hidden_BTD: Tensor, mask_BT: Tensor | None, pooling: Pooling) -> Tensor:
    """Make one vector of the hidden states of each sequence.

    Args:
        hidden_BTD: hidden states.
        mask_BT: true at real tokens; None where all are. A row without any gives some finite vector.
        pooling: ``first`` or ``last`` real token, or the ``mean`` over all real tokens.

    Returns:
        (B, D) in the type of ``hidden_BTD``.
    """
    if mask_BT is None:
        mask_BT = torch.ones(hidden_BTD.shape[:2], dtype=torch.bool, device=hidden_BTD.device)
    if pooling == "mean":
        # where, not a product: padding may hold anything, and 0 * inf is NaN.
        sum_BD = hidden_BTD.where(mask_BT.unsqueeze(-1), 0.0).sum(1, dtype=torch.float32)
        return (sum_BD / mask_BT.sum(1, keepdim=True).clamp(min=1)).to(hidden_BTD.dtype)
    rows_B = torch.arange(len(hidden_BTD), device=hidden_BTD.device)
    first_B = mask_BT.int().argmax(1)
    last_B = mask_BT.shape[1] - 1 - mask_BT.flip(1).int().argmax(1)
    return hidden_BTD[rows_B, first_B if pooling == "first" else last_B]
