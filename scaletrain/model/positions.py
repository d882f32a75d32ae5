"""Position tables: sinusoidal and rotary, and the buckets of relative positions.

The tables are computed from the positions in every forward pass, in fp32, and are no buffers of the model: a cast of
the whole model to bf16 (DeepSpeed does one) would round a buffer's angles, and positions above 256 would fall together.

Shapes: B batch (or 1), T time (queries), S time (keys), D d_model, N heads, H head_dim, R rotary_dim.
"""

import math
from typing import NamedTuple

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
    angles = positions_BT.float().unsqueeze(-1) * _frequencies(d_model, 10_000.0, positions_BT.device)
    interleaved = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)
    return interleaved[..., :d_model]


class Rotary(NamedTuple):
    """How queries and keys are rotated.

    Attributes:
        dim: leading dimensions of a head that are rotated; even.
        theta: base of the frequencies (10,000 in the paper).
        scaling: ``none``; ``linear`` divides all frequencies by ``factor``; ``llama3`` the low ones only.
        factor: of the stretching.
        low_freq_factor: ``llama3``: wavelengths above ``original_len / low_freq_factor`` are stretched in full.
        high_freq_factor: ``llama3``: wavelengths below ``original_len / high_freq_factor`` are left alone.
        original_len: ``llama3``: tokens of a sequence before the stretching.
    """

    dim: int
    theta: float
    scaling: str = "none"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_len: int = 8192


def rotary_frequencies(rotary: Rotary, device: torch.device) -> Tensor:
    """Compute the angle by which each pair of dimensions turns from one position to the next.

    Source: Su et al. 2021, "RoFormer: Enhanced Transformer with Rotary Position Embedding", section 3.4.2. ``linear``:
    Chen et al. 2023, "Extending Context Window of Large Language Models via Positional Interpolation", section 2.3.
    ``llama3``: the reference code of Llama 3.1, which mixes stretched and unstretched frequencies between the two
    bounds, linearly in the number of turns within ``original_len``.

    Args:
        rotary: how queries and keys are rotated.
        device: where the frequencies are to be.

    Returns:
        (rotary.dim / 2,) in fp32, in radians.
    """
    frequencies = _frequencies(rotary.dim, rotary.theta, device)
    if rotary.scaling == "linear":
        return frequencies / rotary.factor
    if rotary.scaling == "llama3":
        turns = rotary.original_len * frequencies / (2 * math.pi)
        span = rotary.high_freq_factor - rotary.low_freq_factor
        unstretched = ((turns - rotary.low_freq_factor) / span).clamp(0, 1)
        return torch.lerp(frequencies / rotary.factor, frequencies, unstretched)
    return frequencies


def rotary_tables(positions_BT: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
    """Compute the cosines and sines by which queries and keys are rotated.

    Args:
        positions_BT: integer positions.
        rotary: how they are rotated.

    Returns:
        Cosines and sines, each (B, 1, T, rotary.dim / 2) in fp32.
    """
    angles = positions_BT.float().unsqueeze(-1) * rotary_frequencies(rotary, positions_BT.device)
    angles = angles.unsqueeze(1)
    return angles.cos(), angles.sin()


def rotate(x_BNTH: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate each pair (i, i + R / 2) of the first R numbers of every head by its position's angle.

    Pairs are taken from the two halves, as Llama's published weights expect, and not from neighbours as in the paper;
    the two differ by a fixed permutation of the rows of the query and key projections.

    Args:
        x_BNTH: queries or keys.
        tables: what ``rotary_tables`` returned; R is twice their width.

    Returns:
        (B, N, T, H) in the type of ``x_BNTH``; the arithmetic is done in fp32. Numbers from R on are as they were.
    """
    cos, sin = tables
    rotary_dim = 2 * cos.shape[-1]
    first, second = x_BNTH[..., :rotary_dim].float().chunk(2, dim=-1)
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x_BNTH.dtype)
    return rotated if rotary_dim == x_BNTH.shape[-1] else torch.cat((rotated, x_BNTH[..., rotary_dim:]), dim=-1)


def _frequencies(width: int, base: float, device: torch.device) -> Tensor:
    exponents = torch.arange(0, width, 2, dtype=torch.float32, device=device) / width
    # Not pow(base, -exponents), whose last bit differs: models made elsewhere were trained with this form, and at
    # position 10,000 the bit is an angle of several 1e-4.
    return 1.0 / torch.pow(base, exponents)


def distance_buckets(
    queries_BT: Tensor, keys_BS: Tensor, *, n_buckets: int, max_distance: int, both_sides: bool
) -> Tensor:
    """Number the distances between queries and keys: near ones each on its own, far ones together, on a log scale.

    Source: Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer",
    section 2.1, and ``_relative_position_bucket`` of its published code, for what the paper leaves open.

    Args:
        queries_BT: integer positions of the queries.
        keys_BS: integer positions of the keys.
        n_buckets: how many numbers there are.
        max_distance: distance from which on all have the last number.
        both_sides: whether keys behind a query have half of the numbers; else they count as distance 0.

    Returns:
        (B, T, S), int64, from 0 to ``n_buckets - 1``.
    """
    ahead_BTS = keys_BS.unsqueeze(-2) - queries_BT.unsqueeze(-1)
    first_BTS = torch.zeros_like(ahead_BTS)
    if both_sides:
        n_buckets //= 2
        first_BTS = (ahead_BTS > 0) * n_buckets
        distance_BTS = ahead_BTS.abs()
    else:
        distance_BTS = (-ahead_BTS).clamp(min=0)
    n_exact = n_buckets // 2
    # The clamp keeps distance 0 out of the logarithm; where it matters, the exact number is taken.
    far_BTS = torch.log(distance_BTS.clamp(min=1).float() / n_exact) / math.log(max_distance / n_exact)
    far_BTS = n_exact + (far_BTS * (n_buckets - n_exact)).long()
    return first_BTS + torch.where(distance_BTS < n_exact, distance_BTS, far_BTS.clamp(max=n_buckets - 1))
