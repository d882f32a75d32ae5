"""What a checkpoint or a model holds, told from headers: no tensor is read."""

import collections
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaletrain.convert.checkpoint_tensors import CheckpointTensors
from scaletrain.convert.gguf_reading import GgufTensors
from scaletrain.convert.open_tensors import open_tensors
from scaletrain.convert.tensors import dtype_name
from scaletrain.errors import ConfigError
from scaletrain.protocols import Step

# Of a model's description, what tells it from others at a glance.
_SHOWN = (
    "vocab_size",
    "d_model",
    "n_layers",
    "n_heads",
    "n_kv_heads",
    "d_ff",
    "max_seq_len",
    "positions",
    "norm",
    "activation",
)


@dataclass(frozen=True)
class Held:
    """One tensor.

    Attributes:
        name: Its name.
        shape: Lengths of its sides.
        dtype: ``fp32``, ``bf16``, ``fp16``, or the file's own name for others.
        nbytes: Its size.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int


@dataclass(frozen=True)
class Inspection:
    """What was found.

    Attributes:
        kind: ``checkpoint``, ``Hugging Face folder``, ``safetensors file`` or ``GGUF file``.
        place: Where.
        tensors: What it holds, in the order of the files.
        facts: Step, tokens and the like, as far as they stand there.
        config: The description of the model, as it stands there; empty for none.
        tied: Further names of tensors, with the names they are stored under.
    """

    kind: str
    place: Path
    tensors: tuple[Held, ...]
    facts: Mapping[str, Any]
    config: Mapping[str, Any]
    tied: Mapping[str, str]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def numbers(self) -> int:
        """Elements of all tensors."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values."""
        tensors = [
            {"name": held.name, "shape": list(held.shape), "dtype": held.dtype, "bytes": held.nbytes}
            for held in self.tensors
        ]
        return {
            "kind": self.kind,
            "place": str(self.place),
            "parameters": self.numbers,
            "bytes": self.nbytes,
            **self.facts,
            "config": dict(self.config),
            "tied": dict(self.tied),
            "tensors": tensors,
        }

    def lines(self) -> list[str]:
        """The same for people: tensors of all layers that are alike share a line."""
        told = [f"{self.kind} {self.place}"]
        told.append(f"  {self.numbers:,} numbers in {len(self.tensors)} tensors, {_size(self.nbytes)}")
        for key, value in self.facts.items():
            told.append(f"  {key}: {value:,}" if isinstance(value, int) else f"  {key}: {value}")
        # Of another project's description a few names are ours by chance.
        ours = self.kind == "checkpoint"
        shown = {key: self.config[key] for key in _SHOWN} if ours else _plain(self.config)
        told += ["  " + ", ".join(f"{key} {value}" for key, value in shown.items())] if shown else []
        rows = list(_grouped(self.tensors))
        widths = [max((len(row[column]) for row in rows), default=0) for column in range(len(rows[0]) if rows else 0)]
        told += ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        return told + [f"  {name} is {saved_as}" for name, saved_as in self.tied.items()]


def inspect(place: Path, step: Step | None = None) -> Inspection:
    """Looks into a checkpoint or a model.

    Args:
        place: A run directory, a folder of checkpoints, a checkpoint, a Hugging Face folder, or a safetensors or GGUF
            file.
        step: Which checkpoint of a run; the newest intact one by default.

    Raises:
        CheckpointError: There is none, or it cannot be read.
        ConfigError: It is a GGUF file, and the package ``gguf`` is missing.
    """
    if place.suffix == ".gguf":
        read = GgufTensors(place)
        held = tuple(Held(*each) for each in read.tensors)
        return Inspection("GGUF file", place, held, {}, read.metadata, {})
    tensors = open_tensors(place, step)
    held = tuple(Held(name, info.shape, dtype_name(info.dtype), info.nbytes) for name, info in tensors.infos.items())
    if isinstance(tensors, CheckpointTensors):
        facts = _facts(tensors.state)
        return Inspection("checkpoint", tensors.folder, held, facts, tensors.config.model_dump(), tensors.tied)
    if place.is_file():
        return Inspection("safetensors file", place, held, {}, {}, {})
    return Inspection("Hugging Face folder", place, held, {}, _read_config(place), {})


def _facts(state: Mapping[str, Any]) -> dict[str, Any]:
    training, engine = state.get("training", {}), state["engine"]
    counters = ("step", "optimizer_steps", "sequences", "target_tokens")
    return {
        **{key: training[key] for key in counters if key in training},
        "zero_stage": engine["zero_stage"],
        "world_size": engine["world_size"],
        "moments": ", ".join(engine["moments"]) or "none",
    }


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / "config.json").read_text()))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"{folder / 'config.json'} cannot be read: {error}; copy it anew") from None


def _grouped(tensors: tuple[Held, ...]) -> Iterator[tuple[str, str, str, str, str]]:
    groups: dict[tuple[str, tuple[int, ...], str], list[Held]] = collections.defaultdict(list)
    for held in tensors:
        groups[re.sub(r"(?<=\.)\d+(?=\.)", "*", held.name), held.shape, held.dtype].append(held)
    for (pattern, shape, dtype), alike in groups.items():
        name = pattern if len(alike) > 1 else alike[0].name
        count = f"{len(alike)} x" if len(alike) > 1 else ""
        yield name, count, str(list(shape)), dtype, _size(sum(held.nbytes for held in alike))


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if isinstance(value, int | float | str)}


def _size(nbytes: int) -> str:
    size = float(nbytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"
