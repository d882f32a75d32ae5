"""Random numbers that are derived, not carried: nothing about them needs saving."""

import hashlib

import torch


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from any number of parts.

    Args:
        *parts: What the seed depends on, such as ("dropout", seed, step, micro step, rank).

    Returns:
        The same number for the same parts, on every machine.
    """
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def seed_dropout(seed: int, step: int, micro_step: int, rank: int) -> None:
    """Sets the generators that dropout draws from, so that a resumed step drops what the uncut one dropped.

    Args:
        seed: The run's seed.
        step: Global batch.
        micro_step: Forward pass within the step.
        rank: Global rank of this process.
    """
    torch.manual_seed(derive_seed("dropout", seed, step, micro_step, rank))
