"""Micro batches on the device, and sums over their sequences by source."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from scaletrain.config.batch_plan import FILLING
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


class RowOutputs:
    """What a task tells of each sequence of an evaluated set, on whichever rank that is."""

    def __init__(self) -> None:
        self._sequences: list[Tensor] = []
        self._outputs: list[Tensor] = []

    def add(self, micro: MicroBatch, outputs_BC: Tensor | None) -> None:
        """Keeps the outputs of a micro batch, but for rows of filling.

        Args:
            micro: Gives the sequences.
            outputs_BC: One row for each of them; None where the task tells nothing.
        """
        if outputs_BC is not None:
            is_real_B = micro["sequences"] != FILLING
            self._sequences.append(micro["sequences"][is_real_B])
            self._outputs.append(outputs_BC.float().cpu()[is_real_B])

    def gather(self, world_size: int) -> Tensor | None:
        """The outputs of all ranks; every rank calls it.

        Args:
            world_size: Number of ranks.

        Returns:
            (sequences, C), in the order of the sequences' indices, each once; None where no rank has any.
        """
        own = (torch.cat(self._sequences), torch.cat(self._outputs)) if self._outputs else None
        told: list[Any] = [None] * world_size
        dist.all_gather_object(told, own)
        found = [part for part in told if part is not None]
        if not found:
            return None
        sequences, outputs = (torch.cat(parts) for parts in zip(*found, strict=True))
        return outputs[sequences.argsort()]
