"""Micro batches on the device, and sums over their sequences by source."""

from typing import Any

import torch
from torch import Tensor

from scaletrain.data.rows import MicroBatch


def to_device(micro: MicroBatch, device: torch.device) -> dict[str, Any]:
    """What a forward pass takes of a micro batch.

    Args:
        micro: On the host.
        device: Where the model is.

    Returns:
        Tensors by the names of the module's arguments.
    """
    return {key: value.to(device, non_blocking=True) for key, value in micro["inputs"].items() if value is not None}


def add_by_source(sums: Tensor, micro: MicroBatch, values_B: Tensor) -> None:
    """Adds a value of each sequence to the sum of its source.

    Args:
        sums: One for each source; is changed.
        micro: Gives the sources.
        values_B: One for each sequence.
    """
    sources_B = micro["sources"].to(sums.device, non_blocking=True)
    sums.index_add_(0, sources_B, values_B.detach().to(sums.dtype))
