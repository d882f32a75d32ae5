"""Named tensors that are read slice by slice, wherever they lie."""

import collections
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from scaletrain.errors import ConfigError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# What the weights of a model may be stored in; whole numbers are those of a quantized one.
WEIGHT_DTYPES = (*DTYPES.values(), torch.float64)


@dataclass(frozen=True)
class TensorInfo:
    """What a tensor is, without its content."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes."""
        return self.numel * self.dtype.itemsize


class Tensors(Protocol):
    """Named tensors that are read slice by slice."""

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """What there is, by name."""

    def read(self, name: str, start: int, numel: int) -> Tensor:
        """Reads a range of a flattened tensor.

        Args:
            name: The tensor's name.
            start: First element, in row-major order.
            numel: Elements.

        Returns:
            A new tensor (numel,) on the CPU, in the stored type.

        Raises:
            CheckpointError: The range cannot be read.
        """

    def release(self) -> None:
        """Gives memory back that reading has mapped."""


def parse_dtype(text: str | None) -> torch.dtype | None:
    """The type that was asked for.

    Args:
        text: ``fp32``, ``bf16`` or ``fp16``; None keeps what is stored.

    Raises:
        ConfigError: It is none of them.
    """
    if text is None:
        return None
    if text not in DTYPES:
        raise ConfigError(f"--dtype {text} is no type to store weights in; give one of {', '.join(DTYPES)}")
    return DTYPES[text]


def dtype_name(dtype: torch.dtype) -> str:
    """The short name of a type: ``fp32``, ``bf16``, ``fp16``, or torch's own for others."""
    short = {kind: name for name, kind in DTYPES.items()}
    return short.get(dtype, str(dtype).removeprefix("torch."))


def nearest_dtype_name(infos: Mapping[str, TensorInfo]) -> str:
    """The short name of the type that most numbers are stored in; ``fp32`` for one without a short name."""
    counts = collections.Counter[torch.dtype]()
    for info in infos.values():
        counts[info.dtype] += info.numel
    name = dtype_name(counts.most_common(1)[0][0])
    return name if name in DTYPES else "fp32"
