"""The mean of several checkpoints of one model, as a start."""

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from scaletrain.convert.checkpoint_tensors import CheckpointTensors
from scaletrain.convert.copying import copy_tensors
from scaletrain.convert.merging import start_like
from scaletrain.convert.pairs import Copy, whole
from scaletrain.convert.start import write_start
from scaletrain.convert.tensors import TensorInfo
from scaletrain.errors import CheckpointError, ConfigError

# Of a model these play a part in training alone: runs that differ in them may be averaged.
_FREE = ("preset", "dropout", "attention_dropout", "init_std")


class MeanTensors:
    """The weighted mean of the tensors of several checkpoints, taken in fp64 and given in fp32."""

    def __init__(self, folders: Sequence[Path], weights: Sequence[float]) -> None:
        """Opens the checkpoints.

        Args:
            folders: Checkpoints with the same tensors.
            weights: The share of each; they need not add up to 1.
        """
        self._sources = [CheckpointTensors(folder) for folder in folders]
        self._shares = [weight / sum(weights) for weight in weights]
        self.infos: Mapping[str, TensorInfo] = {
            name: TensorInfo(info.shape, torch.float32) for name, info in self._sources[0].infos.items()
        }

    def read(self, name: str, start: int, numel: int) -> Tensor:
        """Reads a range of a flattened tensor; see ``Tensors``."""
        mean = torch.zeros(numel, dtype=torch.float64)
        for source, share in zip(self._sources, self._shares, strict=True):
            mean.add_(source.read(name, start, numel), alpha=share)
        return mean.float()

    def release(self) -> None:
        """Unmaps all files."""
        for source in self._sources:
            source.release()


def average(folders: Sequence[Path], out: Path, weights: Sequence[float] | None = None, processes: int = 1) -> None:
    """Writes the mean of several checkpoints as a start.

    Averages of the last checkpoints of a run often do better than each of them.

    Source: Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and Better Generalization".

    Args:
        folders: Checkpoints of one model, of any ZeRO stages and numbers of ranks.
        out: The new folder.
        weights: A number above 0 for each; equal ones by default.
        processes: How many processes share the work.

    Raises:
        ConfigError: There are fewer than two, a weight is out of range, their models or tokenizers differ, or ``out``
            cannot be written.
        CheckpointError: One is damaged.
    """
    shares = [1.0] * len(folders) if weights is None else list(weights)
    if len(folders) < 2 or len(shares) != len(folders):
        raise ConfigError(f"{len(folders)} checkpoints and {len(shares)} weights: give two or more, and a weight each")
    if not all(0 < share < math.inf for share in shares) or not sum(shares) < math.inf:
        raise ConfigError(f"weights {', '.join(map(str, shares))}: give finite numbers above 0, such as 1,1")
    sources = [CheckpointTensors(folder) for folder in folders]
    first = sources[0]
    for other in sources[1:]:
        _refuse_another_model(first, other)
        _refuse_another_tokenizer(first, other)
    provenance = {"mean_of": [f"{folder.parent.parent.name}/{folder.name}" for folder in folders], "weights": shares}
    start = start_like(first, MeanTensors(folders, shares).infos, provenance)
    copies = [Copy(whole(name, info.shape), whole(name, info.shape)) for name, info in start.infos.items()]
    open_source = functools.partial(MeanTensors, list(folders), shares)
    write_start(out, start, lambda places: copy_tensors(open_source, copies, places, processes))


def _refuse_another_model(first: CheckpointTensors, other: CheckpointTensors) -> None:
    shapes, others = ({name: info.shape for name, info in source.infos.items()} for source in (first, other))
    wrong = [
        f"{name}: {shapes.get(name)} and {others.get(name)}"
        for name in sorted(shapes.keys() | others.keys())
        if shapes.get(name) != others.get(name)
    ]
    if wrong:
        raise CheckpointError(f"{first.folder} and {other.folder} are of different models: {'; '.join(wrong[:5])}")
    ours, theirs = first.config.model_dump(), other.config.model_dump()
    differing = [
        f"model.{key}: {ours[key]} and {theirs[key]}" for key in ours if key not in _FREE and ours[key] != theirs[key]
    ]
    if differing:
        raise ConfigError(f"{first.folder} and {other.folder} are used differently: {'; '.join(differing)}")


def _refuse_another_tokenizer(first: CheckpointTensors, other: CheckpointTensors) -> None:
    """Row by row the embeddings of two vocabularies are of different tokens: their mean is of none."""
    one, two = (source.folder.parent.parent / "tokenizer.json" for source in (first, other))
    if one.is_file() and two.is_file() and one.read_bytes() != two.read_bytes():
        raise ConfigError(f"{one} and {two} differ: average runs of one tokenizer")
