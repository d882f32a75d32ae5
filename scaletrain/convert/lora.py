"""Merges a LoRA adapter into the weights of the model that it was trained on, slice by slice.

Shapes: R rank.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scaletrain.convert.accompanying import copy_other_files
from scaletrain.convert.adapter_fit import Source, fit, is_transposed
from scaletrain.convert.adapters import CONFIG, Change, open_adapter, read_changes
from scaletrain.convert.copying import copy_tensors
from scaletrain.convert.low_rank import add_product
from scaletrain.convert.output import new_folder
from scaletrain.convert.pairs import Copy, whole
from scaletrain.convert.placing import lay_out_safetensors
from scaletrain.convert.tensors import TensorInfo, Tensors, parse_dtype
from scaletrain.convert.weights_folder import open_weights
from scaletrain.errors import CheckpointError

_SHARD_BYTES = 5_000_000_000


def merge_lora(source: Path, adapter: Path, out: Path, dtype: str | None, processes: int) -> None:
    """Writes a Hugging Face folder whose weights are ``W + scale * B A``, and whose other files are the source's.

    Sums are taken in fp32 and rounded once.

    Args:
        source: Hugging Face folder of the model that the adapter was trained on.
        adapter: PEFT folder of a LoRA adapter.
        out: Folder to make.
        dtype: ``fp32``, ``bf16`` or ``fp16``; None keeps each tensor's own.
        processes: Processes that share the work.

    Raises:
        CheckpointError: A folder cannot be read, or the two do not belong together.
        ConfigError: The adapter or the model is of a kind that cannot be merged, or ``out`` is there already.
    """
    wanted = parse_dtype(dtype)
    stored = open_weights(source).infos
    targets = {name: TensorInfo(info.shape, _target_dtype(info.dtype, wanted)) for name, info in stored.items()}
    merged = open_merged(source, adapter)
    merged.check_finite()
    merged.release()
    views = [whole(name, info.shape) for name, info in targets.items()]
    with new_folder(out) as folder:
        places = lay_out_safetensors(folder, targets, _SHARD_BYTES, {"format": "pt"})
        copy_tensors(partial(open_merged, source, adapter), [Copy(view, view) for view in views], places, processes)
        copy_other_files(source, folder, dtype)


def open_merged(source: Path, adapter: Path) -> "MergedTensors":
    """Opens a model together with an adapter.

    Args:
        source: Hugging Face folder.
        adapter: PEFT folder.

    Raises:
        CheckpointError: One of them cannot be read, or the two do not belong together.
        ConfigError: The adapter or the model is of a kind that cannot be merged.
    """
    model, added = open_weights(source), open_adapter(adapter)
    there = Source(source, model.infos, _read_json(source / "config.json"))
    settings = _read_json(adapter / CONFIG)
    changes = fit(read_changes(adapter, settings, added.infos), there, added)
    infos, is_fan_in_first = added.infos, bool(settings.get("fan_in_fan_out"))
    transposed = {
        name
        for name, change in changes.items()
        if change.low_rank is not None and is_transposed(name, change.low_rank, there, infos, is_fan_in_first)
    }
    return MergedTensors(model, added, changes, transposed)


class MergedTensors:
    """A model's tensors as an adapter leaves them; what it changes is fp32, all else as it is stored.

    The factors of one product are held in memory at a time.
    """

    def __init__(self, source: Tensors, adapter: Tensors, changes: Mapping[str, Change], transposed: set[str]) -> None:
        """Takes what is open.

        Args:
            source: The model's tensors.
            adapter: The adapter's.
            changes: What is done to each, by name in the source.
            transposed: Names of weights that a product is added to transposed.
        """
        self._source = source
        self._adapter = adapter
        self._adapter_infos = adapter.infos
        self._changes = changes
        self._transposed = transposed
        self._held: tuple[str, Tensor, Tensor] | None = None
        self.infos: Mapping[str, TensorInfo] = {
            name: TensorInfo(info.shape, torch.float32) if name in changes else info
            for name, info in source.infos.items()
        }

    def read(self, name: str, start: int, numel: int) -> Tensor:
        """Computes a range of a flattened tensor; see ``Tensors``."""
        change = self._changes.get(name)
        if change is None:
            return self._source.read(name, start, numel)
        if change.replacement is not None:
            values = self._adapter.read(change.replacement, start, numel).float()
        else:
            values = self._source.read(name, start, numel).float()
        if change.low_rank is not None:
            left, right = self._factors(name)
            add_product(values, start, left, right, change.low_rank.scale)
        if change.added is not None:
            stored, scale = change.added
            values += self._adapter.read(stored, start, numel).float() * scale
        return values

    def release(self) -> None:
        """Gives memory back that reading has mapped."""
        self._source.release()
        self._adapter.release()

    def check_finite(self) -> None:
        """Reads all factors.

        Raises:
            CheckpointError: One holds NaN or infinity.
        """
        for name, change in self._changes.items():
            if change.low_rank is None:
                continue
            for stored, factor in zip((change.low_rank.a, change.low_rank.b), self._factors(name), strict=True):
                if not factor.isfinite().all():
                    raise CheckpointError(
                        f"the adapter's {stored} holds NaN or infinity; use an older checkpoint of it"
                    )

    def _factors(self, name: str) -> tuple[Tensor, Tensor]:
        """What is multiplied for a weight: (rows, R) and (R, columns)."""
        if self._held is None or self._held[0] != name:
            self._held = None  # before the next ones are read, so that never two are there
            low_rank = self._changes[name].low_rank
            assert low_rank is not None  # asked for such weights only
            a, b = self._whole(low_rank.a), self._whole(low_rank.b)
            self._held = (name, a.T, b.T) if name in self._transposed else (name, b, a)
        return self._held[1], self._held[2]

    def _whole(self, stored: str) -> Tensor:
        info = self._adapter_infos[stored]
        return self._adapter.read(stored, 0, info.numel).float().view(info.shape)


def _target_dtype(stored: torch.dtype, wanted: torch.dtype | None) -> torch.dtype:
    return stored if wanted is None or not stored.is_floating_point else wanted


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Give a folder in the format of its library.") from None
