"""Sums over an evaluated set, of the ranks of a run or of one process."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scaletrain.config.batch_plan import FILLING
from scaletrain.data.rows import MicroBatch
from scaletrain.engine.batches import add_by_source, to_device
from scaletrain.model.losses import LossTerms


@dataclass(frozen=True)
class EvaluationSums:
    """Sums over an evaluated set, on all ranks together.

    Attributes:
        nll: Cross-entropy, in nats.
        targets: Target tokens.
        weight: What the caller weighed them with, such as their length in bytes.
        source_nll: Cross-entropy by source, in nats.
        source_targets: Target tokens by source.
        outputs: What the task told of each sequence (sequences, C), fp32 on the CPU, in the order of their indices;
            None where it tells nothing.
    """

    nll: float
    targets: int
    weight: float
    source_nll: tuple[float, ...]
    source_targets: tuple[int, ...]
    outputs: Tensor | None = None


def _alone(value: Any) -> list[Any]:
    return [value]


def _is_the_sum(value: Tensor) -> None:
    pass


@torch.no_grad()
def sum_over(
    module: Callable[..., LossTerms],
    micro_batches: Iterable[MicroBatch],
    weigh: Callable[[MicroBatch], Tensor],
    n_sources: int,
    device: torch.device,
    add_up: Callable[[Tensor], object] = _is_the_sum,
    gather: Callable[[Any], list[Any]] = _alone,
) -> EvaluationSums:
    """Sums over a fixed set of micro batches; in a run every rank calls it with equally many.

    Args:
        module: Of the task, in evaluation.
        micro_batches: This rank's part.
        weigh: A further sum over a micro batch, such as the length of its targets in bytes.
        n_sources: Sources that the rows of micro batches are numbered by.
        device: Where the module is.
        add_up: Adds a tensor of all ranks up, in place; in one process there is nothing to add.
        gather: What each rank has, on all ranks.

    Returns:
        The sums over all ranks.
    """
    nll, targets = (torch.zeros(n_sources, dtype=torch.float64, device=device) for _ in range(2))
    weight = torch.zeros(1, dtype=torch.float64, device=device)
    outputs = _RowOutputs()
    for micro in micro_batches:
        terms = module(**to_device(micro, device))
        add_by_source(nll, micro, terms.nll_B)
        add_by_source(targets, micro, terms.targets_B)
        weight += weigh(micro).to(device)
        outputs.add(micro, terms.outputs_BC)
    sums = torch.cat([weight, nll, targets])
    add_up(sums)
    weight_sum, *by_source = sums.tolist()
    source_nll = tuple(by_source[:n_sources])
    source_targets = tuple(map(int, by_source[n_sources:]))
    totals = (sum(source_nll), sum(source_targets), weight_sum)
    return EvaluationSums(*totals, source_nll, source_targets, outputs.gather(gather))


class _RowOutputs:
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

    def gather(self, gather: Callable[[Any], list[Any]]) -> Tensor | None:
        """The outputs of all ranks; every rank calls it.

        Args:
            gather: What each rank has, on all ranks.

        Returns:
            (sequences, C), in the order of the sequences' indices, each once; None where no rank has any.
        """
        own = (torch.cat(self._sequences), torch.cat(self._outputs)) if self._outputs else None
        found = [part for part in gather(own) if part is not None]
        if not found:
            return None
        sequences, outputs = (torch.cat(parts) for parts in zip(*found, strict=True))
        return outputs[sequences.argsort()]
