"""Normalisation of the residual stream.

Shapes: B batch, T time, D d_model.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional


class RMSNorm(nn.Module):
    """Division by the root mean square, then a learned scale.

    torch computes the mean square of 16-bit input in fp32. The scale is cast to the input's type, because torch leaves
    its fused kernel when the two differ, as they do under autocast.

    Source: Zhang and Sennrich 2019, "Root Mean Square Layer Normalization".

    Args:
        d_model: width of the input: that of the residual stream, or of a head.
        eps: added to the mean square.
    """

    def __init__(self, d_model: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x_BTD: Tensor) -> Tensor:
        return functional.rms_norm(x_BTD, (x_BTD.shape[-1],), self.weight.to(x_BTD.dtype), self.eps)


def build_norm(kind: Literal["layer_norm", "rms_norm"], d_model: int, *, eps: float, bias: bool) -> nn.Module:
    """Build a normalisation layer.

    Args:
        kind: ``layer_norm`` or ``rms_norm``.
        d_model: width of the input.
        eps: added to the variance or the mean square.
        bias: whether a LayerNorm has a bias (an RMSNorm never has one).

    Returns:
        A module that maps (B, T, D) to (B, T, D); its scale starts at one, its bias at zero.
    """
    if kind == "rms_norm":
        return RMSNorm(d_model, eps)
    return nn.LayerNorm(d_model, eps=eps, bias=bias)
