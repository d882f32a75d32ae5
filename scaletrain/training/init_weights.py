"""Fits the weights of a checkpoint to a model that differs from its own in heads, adapters and rows for new tokens."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from scaletrain.checkpoint.fragments import WEIGHT, FragmentReader
from scaletrain.errors import CheckpointError

_TASK = "model."
# What may be there on one side alone: it is made anew for another task, by these names in the model, or in the task.
_HEADS = ("output", "output_transform", "pooler", "classifier", "segment_embedding")
_ADAPTERS = ("lora_A", "lora_B")
# Their rows are tokens; more of them begin at the mean of those there are.
_TOKEN_ROWS = ("embedding.weight", "output.weight", "output.bias")

_CHUNK_ROWS = 4096
_LAYER = re.compile(r"\.\d+\.")


@dataclass(frozen=True)
class Fit:
    """What a model takes from a checkpoint, beside all that both have.

    Attributes:
        initial: Names that the checkpoint lacks, or has for other classes, so that they begin at their initial values.
        unused: Names that the model has no use for.
        grown: Names of tensors that have more rows here, with the number there.
        source_names: Names of tensors that the checkpoint has under another one's: they were tied there.
    """

    initial: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    grown: Mapping[str, int] = field(default_factory=dict)
    source_names: Mapping[str, str] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """The same for people."""
        told = {
            "begin at their initial values": self.initial,
            "are not used": self.unused,
            "have new rows, which begin at the mean of the old ones": tuple(self.grown),
        }
        return [f"{', '.join(_joined(names))} {what}" for what, names in told.items() if names]


def fit_weights(state: Mapping[str, Any], live: Mapping[str, Sequence[int]]) -> Fit:
    """Compares the tensors of a checkpoint with those of a model.

    Args:
        state: The engine's part of the checkpoint's ``state.json``.
        live: Shapes of the model's tensors by name, a tied one once.

    Returns:
        What becomes of those that are not the same.

    Raises:
        CheckpointError: One is missing, or too much, that is neither head nor adapter, or has another shape.
    """
    saved: dict[str, Sequence[int]] = state["shapes"]
    tied: dict[str, str] = state.get("tied", {})
    source_names = {name: tied[name] for name in live if name in tied}
    initial, problems, grown = [], [], {}
    for name, shape in live.items():
        there = saved.get(source_names.get(name, name))
        if there is None and _is_free(name, (*_HEADS, *_ADAPTERS)):
            initial.append(name)
        elif there is None:
            problems.append(f"{_shown(name)} is missing")
        elif list(there) != list(shape):
            if (
                _shown(name).removeprefix("encoder.").removeprefix("decoder.") in _TOKEN_ROWS
                and list(there[1:]) == list(shape[1:])
                and there[0] < shape[0]
            ):
                grown[name] = int(there[0])
            elif _is_free(name, ("classifier",)):
                initial.append(name)  # its classes were others
            else:
                problems.append(f"{_shown(name)}: {list(there)} there, {list(shape)} here")
    used = {source_names.get(name, name) for name in live}
    left_over = [name for name in saved if name not in used]
    unused = [name for name in left_over if _is_free(name, _HEADS)]
    problems += [f"{_shown(name)} is too much" for name in left_over if name not in unused]
    if problems:
        more = f", and {len(problems) - 8} more" if len(problems) > 8 else ""
        adapted = any(_is_free(name, _ADAPTERS) for name in left_over)
        remedy = "; merge its adapters first, with tools/convert.py merge_lora" if adapted else ""
        raise CheckpointError(f"its weights are not those of this model: {'; '.join(problems[:8])}{more}{remedy}")
    return Fit(tuple(initial), tuple(unused), grown, source_names)


class FittedWeights:
    """A checkpoint's weights as a model takes them; see ``FragmentSource``."""

    def __init__(self, reader: FragmentReader, fit: Fit, live: Mapping[str, Sequence[int]]) -> None:
        """Holds what is read from.

        Args:
            reader: Reads the checkpoint.
            fit: What is not the same there.
            live: Shapes of the model's tensors.
        """
        self._reader = reader
        self._fit = fit
        self._live = live
        self._means: dict[str, Tensor] = {}

    def read(self, name: str, kind: str, start: int, numel: int) -> Tensor | None:
        """Reads a range; None for what begins at its initial values."""
        if name in self._fit.initial:
            return None
        there = self._fit.source_names.get(name, name)
        if name not in self._fit.grown:
            return self._reader.read(there, kind, start, numel)
        columns = math.prod(self._live[name][1:])
        end = self._fit.grown[name] * columns
        old = max(0, min(numel, end - start))
        new_rows = torch.arange(start + old, start + numel).remainder(columns)
        parts = [self._mean_row(name, there, columns)[new_rows]]
        if old:
            kept = self._reader.read(there, kind, start, old)
            assert kept is not None  # weights, unlike moments, are always there
            parts.insert(0, kept)
        return torch.cat(parts)

    def _mean_row(self, name: str, there: str, columns: int) -> Tensor:
        """Mean of the old rows (columns,): summed in one order on all ranks, so that all have the same bits.

        Source: Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models": a new token then
        changes the probabilities of the others by no more than its share.
        """
        if name not in self._means:
            rows = self._fit.grown[name]
            total = torch.zeros(columns, dtype=torch.float64)
            for first in range(0, rows, _CHUNK_ROWS):
                count = min(_CHUNK_ROWS, rows - first)
                chunk = self._reader.read(there, WEIGHT, first * columns, count * columns)
                assert chunk is not None  # as above
                total += chunk.view(count, columns).double().sum(0)
            self._means[name] = (total / rows).float()
        return self._means[name]


def _joined(names: Iterable[str]) -> Iterator[str]:
    """Names for people: what stands in several layers once, with the number of them."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(_LAYER.sub(".*.", _shown(name)), []).append(_shown(name))
    for pattern, members in alike.items():
        yield members[0] if len(members) == 1 else f"{pattern} ({len(members)})"


def _shown(name: str) -> str:
    return name.removeprefix(_TASK)


def _is_free(name: str, parts: Sequence[str]) -> bool:
    """Whether a tensor belongs to one of these modules: heads by their place at the top, adapters anywhere."""
    words = _shown(name).split(".")
    return words[0] in parts or any(word in _ADAPTERS and word in parts for word in words)
