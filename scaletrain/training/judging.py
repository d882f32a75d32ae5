"""By which figures a model is judged on a fixed set, during a run and afterwards."""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from scaletrain.data.rows import MicroBatch
from scaletrain.data.tokenizer import token_byte_lengths
from scaletrain.engine.batches import to_device
from scaletrain.engine.summing import EvaluationSums
from scaletrain.evaluation.perplexity import perplexity_of
from scaletrain.monitors import names
from scaletrain.tasks.task import Task, Written


class ByteCount:
    """The bytes of text that the targets of a micro batch stand for."""

    def __init__(self, task: Task, tokenizer: Tokenizer) -> None:
        """Looks up the bytes of each token.

        Args:
            task: Only where it predicts a text is the cost told per byte of it; else there are none.
            tokenizer: Of the corpora; byte-level where the task predicts a text.
        """
        self._byte_lengths = torch.from_numpy(token_byte_lengths(tokenizer)) if task.predicts_text else None

    def __call__(self, micro: MicroBatch) -> Tensor:
        """The bytes, a scalar on the CPU."""
        targets_BT = micro["inputs"].get("targets")
        if self._byte_lengths is None or targets_BT is None:
            return torch.zeros(())
        return self._byte_lengths[targets_BT.clamp(min=0)].where(targets_BT >= 0, 0).sum()


def figures_of(sums: EvaluationSums, task: Task, source_names: Sequence[str]) -> dict[str, float]:
    """The loss, and what the task tells besides.

    Args:
        sums: Over the set, weighed by bytes of text.
        task: The task.
        source_names: Of the sources that the sums tell apart.

    Returns:
        Metrics by name.
    """
    figures = perplexity_of(sums.nll, sums.targets, sums.weight)
    metrics = {names.EVAL_LOSS: figures.loss}
    if task.predicts_text:
        metrics[names.EVAL_PERPLEXITY] = figures.perplexity
    if figures.bits_per_byte is not None:
        metrics[names.EVAL_BITS_PER_BYTE] = figures.bits_per_byte
    metrics |= task.figures(figures.loss, sums.outputs)
    if len(source_names) > 1:
        for name, nll, targets in zip(source_names, sums.source_nll, sums.source_targets, strict=False):
            metrics[names.of_source(names.EVAL_LOSS, name)] = nll / targets if targets else math.nan
    return metrics


def write_texts(
    task: Task,
    model: Any,
    micro_batches: Iterable[MicroBatch],
    max_new_tokens: int,
    device: torch.device,
    all_are: Callable[[bool], bool] = bool,
    gather: Callable[[list[Written]], list[list[Written]]] = lambda own: [own],
) -> list[Written]:
    """Has a model write a text for each example; in a run every rank calls it with equally many micro batches.

    Args:
        task: One that writes.
        model: In evaluation.
        micro_batches: This rank's part of the examples.
        max_new_tokens: Tokens of a text at most.
        device: Where the model is.
        all_are: Whether what is true on this rank is so on all.
        gather: What each rank has, on all ranks.

    Returns:
        The texts of all ranks, in the order of the examples.
    """
    own: list[Written] = []
    for micro in micro_batches:
        inputs, sequences = to_device(micro, device), micro["sequences"].tolist()
        own += task.write(model, inputs, sequences, max_new_tokens, all_are)
    return sorted(chain.from_iterable(gather(own)))
