"""The weights of a checkpoint, for generation and for tests."""

import json
import math
from pathlib import Path

from torch import Tensor

from scaletrain.checkpoint.fragments import WEIGHT, FragmentReader
from scaletrain.checkpoint.layout import CONFIG, STATE
from scaletrain.checkpoint.verify import require_checkpoint
from scaletrain.config.load import load_config
from scaletrain.protocols import EMA, Step

_A, _B = ".lora_A.weight", ".lora_B.weight"


def load_weights(checkpoints: Path, step: Step | None = None, trusted: bool = False) -> dict[str, Tensor]:
    """Reads a model's weights from a run's checkpoint of any ZeRO stage and number of ranks.

    Args:
        checkpoints: The run's ``checkpoints`` folder.
        step: A certain checkpoint; the newest intact one by default.
        trusted: Whether objects of any class may be unpickled, which runs what the files say.

    Returns:
        fp32 tensors by their names in ``Transformer.state_dict()``; tied names share one tensor. What adapters add is
        added.

    Raises:
        CheckpointError: There is no such checkpoint, or it is damaged.
    """
    return merged_weights(require_checkpoint(checkpoints, step, "sizes"), trusted)


def merged_weights(folder: Path, trusted: bool = False, averaged: bool = False) -> dict[str, Tensor]:
    """Reads the weights of one checkpoint folder, with what adapters add.

    Args:
        folder: The checkpoint.
        trusted: See ``load_weights``.
        averaged: Whether to read the moving average of the weights, as far as one was kept.

    Returns:
        See ``load_weights``.

    Raises:
        CheckpointError: It is damaged.
    """
    weights = read_weights(folder, trusted, averaged)
    layers = [name.removesuffix(_B) for name in weights if name.endswith(_B)]
    if layers:
        lora = load_config(folder / CONFIG, {}).lora
        for layer in layers:
            a_RI, b_OR = weights.pop(f"{layer}{_A}"), weights.pop(f"{layer}{_B}")
            weights[f"{layer}.weight"].addmm_(b_OR, a_RI, alpha=lora.alpha / lora.rank)
    return weights


def read_weights(folder: Path, trusted: bool = False, averaged: bool = False) -> dict[str, Tensor]:
    """Reads the weights of one checkpoint folder, adapters by themselves; see ``merged_weights``."""
    state = json.loads((folder / STATE).read_text())["engine"]
    reader = FragmentReader(folder, state["zero_stage"], trusted)
    weights: dict[str, Tensor] = {}
    for name, shape in state["shapes"].items():
        size = math.prod(shape)
        flat = reader.read(name, EMA, 0, size) if averaged else None
        if flat is None:  # of what is frozen, and before the first update, there is no average
            flat = reader.read(name, WEIGHT, 0, size)
        assert flat is not None  # weights, unlike moments, are always there
        weights[name] = flat.view(shape)
    for name, saved_as in state["tied"].items():
        weights[name] = weights[saved_as]
    return {name.removeprefix("model."): tensor for name, tensor in weights.items()}


def weight_norms(folder: Path) -> dict[str, float]:
    """Reads every weight of a checkpoint, one after the other.

    Args:
        folder: The checkpoint.

    Returns:
        Euclidean norm of each parameter's fp32 weights, by its name in ``state.json``; NaN or infinity where it holds
        such a value.

    Raises:
        CheckpointError: A weight cannot be read.
    """
    state = json.loads((folder / STATE).read_text())["engine"]
    reader = FragmentReader(folder, state["zero_stage"])
    norms = {}
    for name, shape in state["shapes"].items():
        flat = reader.read(name, WEIGHT, 0, math.prod(shape))
        assert flat is not None  # weights, unlike moments, are always there
        norms[name] = float(flat.double().norm())
    return norms
