"""Exact perplexity per token and bits per byte from sums over the validation set."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Perplexity:
    """How well a model predicts a text.

    Attributes:
        loss: Cross-entropy per target token, in nats.
        perplexity: Its exponential.
        bits_per_byte: Bits to code the text, per byte of UTF-8; comparable across tokenizers. None without bytes.
    """

    loss: float
    perplexity: float
    bits_per_byte: float | None


def perplexity_of(nll: float, targets: float, target_bytes: float) -> Perplexity:
    """Turns sums into figures; sums, unlike means of means, are right however the set was cut into batches.

    Args:
        nll: Sum of the cross-entropy over all targets, in nats.
        targets: Number of targets.
        target_bytes: Bytes of text that the targets stand for. The end of a document is a target with no bytes: what it
            costs to say that a document ends is part of the cost of the text.

    Returns:
        The figures; NaN for an empty set.
    """
    loss = nll / targets if targets else math.nan
    bits = nll / math.log(2) / target_bytes if target_bytes else None
    return Perplexity(loss, math.exp(min(loss, 700.0)), bits)
