"""Position tables: sinusoidal and rotary.

Both are computed from the positions in every forward pass, in fp32, and are no buffers of the model: a cast of the
whole model to bf16 (DeepSpeed does one) would round a buffer's angles, and positions above 256 would fall together.

Shapes: B batch (or 1), T time, D d_model, N heads, H head_dim.
"""

import torch
from torch import Tensor


def sinusoidal_encoding(positions_BT: Tensor, d_model: int) -> Tensor:
    """Encode positions as sines and cosines of wavelengths from 2 pi to 10,000 * 2 pi.

    ``PE(pos, 2i) = sin(pos / 10000^(2i / d_model))`` and ``PE(pos, 2i + 1)`` is the cosine of the same angle.

    Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.5.

    Args:
        positions_BT: integer positions.
        d_model: width of the encoding.

    Returns:
        (B, T, D) in fp32.
    """
    angles = _angles(positions_BT, d_model, base=10_000.0)
    interleaved = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)
    return interleaved[..., :d_model]


def rotary_tables(positions_BT: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Compute the cosines and sines by which queries and keys are rotated.

    Source: Su et al. 2021, "RoFormer: Enhanced Transformer with Rotary Position Embedding", section 3.4.2.

    Args:
        positions_BT: integer positions.
        head_dim: width of a head; even.
        theta: base of the frequencies (10,000 in the paper).

    Returns:
        Cosines and sines, each (B, 1, T, H / 2) in fp32.
    """
    angles = _angles(positions_BT, head_dim, base=theta).unsqueeze(1)
    return angles.cos(), angles.sin()


def rotate(x_BNTH: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate each pair (i, i + H / 2) of every head by its position's angle.

    Pairs are taken from the two halves of a head, as Llama's published weights expect, and not from neighbours as in
    the paper; the two differ by a fixed permutation of the rows of the query and key projections.

    Args:
        x_BNTH: queries or keys.
        tables: what ``rotary_tables`` returned.

    Returns:
        (B, N, T, H) in the type of ``x_BNTH``; the arithmetic is done in fp32.
    """
    cos, sin = tables
    first, second = x_BNTH.float().chunk(2, dim=-1)
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return rotated.to(x_BNTH.dtype)


def _angles(positions_BT: Tensor, width: int, base: float) -> Tensor:
    exponents = torch.arange(0, width, 2, dtype=torch.float32, device=positions_BT.device) / width
    return positions_BT.float().unsqueeze(-1) * torch.pow(base, -exponents)
