"""Reads tensors out of DeepSpeed's checkpoint files, whatever stage and number of ranks wrote them.

Beside DeepSpeed's files each rank leaves ``fragments_RRRRR.json``: which range of which parameter
stands where in its file. With these, a range of any tensor is read by memory map, without DeepSpeed. The
file may also be a safetensors file, which holds tensors by their names, as stage 0 does.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from scaletrain.errors import CheckpointError
from scaletrain.protocols import FROZEN, Fragment

WEIGHT = "weight"

# Keys that lead to the list of flat fp32 masters, and to the optimizer's state, in each stage's files.
_MASTERS = {
    0: ("module",),
    1: ("optimizer_state_dict", "single_partition_of_fp32_groups"),
    2: ("optimizer_state_dict", "single_partition_of_fp32_groups"),
    3: ("optimizer_state_dict", "fp32_flat_groups"),
}
_STATES = {
    0: ("optimizer", "state"),
    1: ("optimizer_state_dict", "base_optimizer_state", "state"),
    2: ("optimizer_state_dict", "base_optimizer_state", "state"),
    3: ("optimizer_state_dict", "optimizer_state_dict", "state"),
}
# What no optimizer has stands by name, in the files of the model's states: whole, or this rank's partition.
_FROZEN_WEIGHTS = {1: ("module",), 2: ("module",), 3: ("frozen_param_fragments",)}
# DeepSpeed's own small classes in its files. None is needed here: each is read as an inert placeholder, so
# that torch.load can run with weights_only and no code of a checkpoint is ever executed.
_PLACEHOLDERS = (
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
)


class Placeholder:
    """Stands for an object of DeepSpeed's that is not needed."""

    def __new__(cls, *args: object, **kwargs: object) -> "Placeholder":
        """Takes and forgets any arguments."""
        return super().__new__(cls)


def describe_fragments(rank: int, file: str, fragments: Sequence[Fragment], of: str = "") -> tuple[str, str]:
    """One rank's description of a file.

    Args:
        rank: The rank that owns the file.
        file: Name of DeepSpeed's file in the folder.
        fragments: What stands in it.
        of: What is described, where it is not the file with what the rank trains.

    Returns:
        Name and content of the file to put beside it.
    """
    content = {"file": file, "fragments": [asdict(fragment) for fragment in fragments]}
    return f"fragments_{rank:05d}{of}.json", json.dumps(content)


class FragmentReader:
    """Reads ranges of weights and moments from a checkpoint.

    Files are mapped into memory when first needed; only the pages read become resident.
    """

    def __init__(self, folder: Path, zero_stage: int, trusted: bool = False) -> None:
        """Reads the descriptions.

        Args:
            folder: A complete checkpoint.
            zero_stage: The stage that wrote it.
            trusted: Whether objects of any class may be unpickled, which runs what the file says.

        Raises:
            CheckpointError: A description cannot be read.
        """
        self._folder = folder
        self._stage = zero_stage
        self._trusted = trusted
        self._places: dict[str, list[tuple[Fragment, str]]] = {}
        self._contents: dict[str, Any] = {}
        try:
            for path in sorted(folder.glob("fragments_*.json")):
                content = json.loads(path.read_text())
                for record in content["fragments"]:
                    fragment = Fragment(**record)
                    self._places.setdefault(fragment.name, []).append((fragment, content["file"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{folder} cannot be read: {error}. Use an older checkpoint.") from error

    @property
    def names(self) -> list[str]:
        """Names of all parameters."""
        return list(self._places)

    @property
    def frozen(self) -> frozenset[str]:
        """Names of the parameters that were not trained."""
        return frozenset(
            name for name, places in self._places.items() if all(fragment.group == FROZEN for fragment, _ in places)
        )

    def dtype_of(self, name: str) -> torch.dtype:
        """Type in which the weights of a parameter are stored.

        Args:
            name: The parameter's name in the wrapped module.

        Raises:
            CheckpointError: The files do not hold it.
        """
        for fragment, file in self._places.get(name, []):
            flat = self._flat(file, fragment, WEIGHT)
            assert flat is not None  # weights, unlike moments, are always there
            return flat.dtype
        raise CheckpointError(f"{self._folder} does not hold {name}. Use an older checkpoint.")

    def release(self) -> None:
        """Unmaps all files, whose pages count as this process's memory once they were read."""
        self._contents.clear()

    def read(self, name: str, kind: str, start: int, numel: int, dtype: torch.dtype = torch.float32) -> Tensor | None:
        """Reads a range of a flattened tensor.

        Args:
            name: The parameter's name in the wrapped module.
            kind: ``weight``, or a moment of the optimizer such as ``exp_avg``.
            start: First element.
            numel: Elements.
            dtype: Type of the result.

        Returns:
            A new tensor (numel,); None where the optimizer had no such state yet.

        Raises:
            CheckpointError: The files do not hold the range.
        """
        result = torch.empty(numel, dtype=dtype)
        filled = 0
        for fragment, file in self._places.get(name, []):
            first = max(start, fragment.start)
            last = min(start + numel, fragment.start + fragment.numel)
            if first >= last:
                continue
            flat = self._flat(file, fragment, kind)
            if flat is None:
                return None
            source = flat.narrow(0, fragment.offset + first - fragment.start, last - first)
            result.narrow(0, first - start, last - first).copy_(source)
            filled += last - first
        if filled != numel:
            raise CheckpointError(
                f"{self._folder} holds {filled} of elements {start} to {start + numel} of {name}. "
                "A rank's file is missing: use an older checkpoint."
            )
        return result

    def _flat(self, file: str, fragment: Fragment, kind: str) -> Tensor | None:
        content = self._open(file)
        if fragment.group == FROZEN and self._stage:
            tensor = _descend(content, _FROZEN_WEIGHTS[self._stage])[fragment.name] if kind == WEIGHT else None
        elif kind == WEIGHT:
            masters = _descend(content, _MASTERS[self._stage])
            tensor = masters[fragment.name if self._stage == 0 else fragment.group]
        else:
            tensor = _descend(content, _STATES[self._stage]).get(fragment.group, {}).get(kind)
        return None if tensor is None else tensor.detach().view(-1)

    def _open(self, file: str) -> Any:
        if file not in self._contents:
            self._contents[file] = load_tensors(self._folder / file, self._trusted)
        return self._contents[file]


def load_tensors(path: Path, trusted: bool = False) -> Any:
    """Opens a checkpoint's file; without trust no code in it is run.

    Args:
        path: A file written by torch.save, or a safetensors file.
        trusted: Whether objects of any class may be unpickled, which runs what the file says.

    Returns:
        Its content, tensors mapped into memory.

    Raises:
        CheckpointError: The file cannot be read, or holds objects other than tensors and DeepSpeed's own, and is not
            trusted.
    """
    allowed = [(Placeholder, name) for name in _PLACEHOLDERS]
    try:
        if path.suffix == ".safetensors":
            return {"module": load_file(path)}
        with torch.serialization.safe_globals(allowed):  # type: ignore[arg-type]  # torch's hint lacks the pairs
            return torch.load(path, map_location="cpu", mmap=True, weights_only=not trusted)
    except Exception as error:  # unpickling of damaged files raises errors of any kind
        raise CheckpointError(f"{path} cannot be read: {_reason(error, path, allowed)}") from error


def _reason(error: Exception, path: Path, allowed: list[Any]) -> str:
    # torch would advise to load the file without care, which runs whatever code is in it.
    foreign = re.search(r"GLOBAL (\S+)", str(error))
    if not foreign:
        return f"{str(error).partition(chr(10))[0]}. Use an older checkpoint."
    try:
        with torch.serialization.safe_globals(allowed):
            found = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # a damaged or malicious file: what was met first is known
        found = []
    named = ", ".join(found or [foreign[1]])
    return (
        f"it holds {named}, and nothing but tensors, plain data and DeepSpeed's own small classes is taken from a "
        f"file. Loading the file would import and call {named}, with your rights on this machine. Use an older "
        "checkpoint, or, if you know and trust whoever wrote it, give --trust_checkpoint to "
        "train.py, generate.py or convert.py."
    )


def _descend(content: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        content = content[key]
    return content
