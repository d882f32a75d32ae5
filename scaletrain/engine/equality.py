"""Compares across ranks what must be equal bit for bit, by checksums that are made where the numbers are."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from scaletrain.engine.partitions import moment_keys

# A Mersenne prime: no product of a power of two and a weight below is a multiple of it.
_PRIME = 2**31 - 1
_CHUNK_NUMBERS = 2**22
_MOST_WEIGHT = 509
# A number of a parameter's bytes as one integer: the width of its elements does not matter to the sum.
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int32}


@dataclass(frozen=True)
class Difference:
    """Something that is not equal on all ranks.

    Attributes:
        what: What differs: ``weights``, ``moments`` or ``state``.
        ranks: The ranks in the minority, or all of them where there is no majority.
        told_apart: Whether there is a majority.
    """

    what: str
    ranks: tuple[int, ...]
    told_apart: bool


def find_differences(ds: Any, stage: int, state: str) -> tuple[Difference, ...]:
    """Compares the replicated tensors and the state of all ranks; every rank calls it.

    Args:
        ds: A ``deepspeed.DeepSpeedEngine``.
        stage: Its ZeRO stage. Stages 0 to 2 have all weights of the forward pass on every rank, stage 0 the moments
            too, stage 3 the small weights that it keeps gathered.
        state: What this rank takes for the state of the run, as text.

    Returns:
        The differences, the same on all ranks.
    """
    device = next(ds.module.parameters()).device
    own = [
        checksum(_weights(ds, stage), device),
        checksum(_moments(ds) if stage == 0 else (), device),
        torch.tensor(int(hashlib.sha256(state.encode()).hexdigest()[:15], 16), device=device),
    ]
    sums = torch.stack(own).cpu()
    gathered = [torch.zeros_like(sums) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, sums)
    by_kind = torch.stack(gathered).T.tolist()
    found = (minority(what, values) for what, values in zip(("weights", "moments", "state"), by_kind, strict=True))
    return tuple(difference for difference in found if difference is not None)


def minority(what: str, values: list[int]) -> Difference | None:
    """The ranks that stand against most.

    Args:
        what: What is compared.
        values: Checksum of each rank.

    Returns:
        None where all are equal.
    """
    counts = Counter(values).most_common()
    if len(counts) == 1:
        return None
    told_apart = counts[0][1] > counts[1][1]
    ranks = tuple(rank for rank, value in enumerate(values) if not told_apart or value != counts[0][0])
    return Difference(what, ranks, told_apart)


def checksum(tensors: Iterable[Tensor], device: torch.device) -> Tensor:
    """A checksum over the bits of tensors, in integers, so that it does not depend on the order of additions.

    A single changed bit always changes it. Nothing is copied to the host, and no sum leaves the range of int64: numbers
    below 2^31, weights below 2^9, 2^22 of them.

    Args:
        tensors: Of any types.
        device: Where they are.

    Returns:
        An int64 number on the device.
    """
    total = torch.zeros((), dtype=torch.int64, device=device)
    weights_of: dict[torch.device, Tensor] = {}  # what is offloaded is summed up where it is
    for tensor in tensors:
        if tensor.device not in weights_of:
            places = torch.arange(_CHUNK_NUMBERS, device=tensor.device)
            weights_of[tensor.device] = places.remainder_(_MOST_WEIGHT).add_(1)
        weights = weights_of[tensor.device]
        bits = tensor.detach().contiguous().view(-1).view(_INTEGERS[tensor.element_size()])
        for chunk in torch.split(bits, _CHUNK_NUMBERS):
            weighted = (chunk.to(torch.int64) * weights[: len(chunk)]).sum()
            total = (total * 31 + weighted.to(device)).remainder(_PRIME)
    return total


def _weights(ds: Any, stage: int) -> Iterator[Tensor]:
    if stage < 3:
        yield from ds.module.parameters()
        return
    for parameter in ds.optimizer.persistent_parameters:
        if parameter.numel() == parameter.ds_numel:
            yield parameter


def _moments(ds: Any) -> Iterator[Tensor]:
    keys = moment_keys(ds.optimizer)
    for group in ds.optimizer.param_groups:
        for parameter in group["params"]:
            state = ds.optimizer.state.get(parameter, {})
            yield from (state[key] for key in keys if state.get(key) is not None)
