"""The adapters of a run, as a PEFT folder: ``adapter_config.json`` and ``adapter_model.safetensors``.

Where a family joins several of our layers into one, as GPT-2 does with queries, keys and values, their adapters become
one: the A below each other, the B in blocks. Its rank is the sum of theirs, and what it adds is the same.

Shapes: R rank, I in_features, O out_features.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from scaletrain.convert.checkpoint_tensors import CheckpointTensors
from scaletrain.convert.family import Family
from scaletrain.convert.model_tensors import infos_of
from scaletrain.convert.output import new_folder
from scaletrain.convert.pairs import Pair, View
from scaletrain.convert.registry import family_for
from scaletrain.convert.tensors import TensorInfo
from scaletrain.errors import ConfigError

_PREFIX = "base_model.model."
_TASKS = {"CausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM", "ForSequenceClassification": "SEQ_CLS"}


@dataclass(frozen=True)
class _Adapter:
    """What stands for one module of theirs."""

    a_RI: Tensor
    b_OR: Tensor
    is_transposed: bool


def export_adapter(
    checkpoint: CheckpointTensors, out: Path, base: str = "", model_type: str | None = None
) -> list[str]:
    """Writes what a run with adapters has trained, and nothing else, as a PEFT folder.

    Args:
        checkpoint: The checkpoint, with adapters.
        out: The new folder.
        base: Name or folder of the model that PEFT finds in ``base_model_name_or_path``.
        model_type: The family whose names are used; the first that fits by default.

    Returns:
        Names of the modules that are adapted, as the family calls them.

    Raises:
        ConfigError: There are no adapters, no family has the model, or ``out`` cannot be written.
    """
    if not checkpoint.adapters:
        raise ConfigError(f"{checkpoint.folder} has no adapters; a run has some where lora.rank is above 0")
    family, model = family_for(checkpoint.config, model_type)
    zeros = infos_of(model) if model != checkpoint.config else {}
    pairs, theirs = family.pairs({**zeros, **checkpoint.infos}, model)
    of_tensor: dict[str, list[Pair]] = {}
    for pair in pairs:
        of_tensor.setdefault(pair.theirs.name, []).append(pair)
    found = {
        name.removesuffix(".weight"): _joined(checkpoint, parts, theirs[name].shape)
        for name, parts in of_tensor.items()
        if any(_layer(part) in checkpoint.adapters for part in parts)
    }
    tensors = {f"{_PREFIX}{module}.lora_A.weight": adapter.a_RI for module, adapter in found.items()}
    tensors |= {f"{_PREFIX}{module}.lora_B.weight": adapter.b_OR for module, adapter in found.items()}
    replaced = {name: parts for name, parts in of_tensor.items() if _was_trained(checkpoint, parts)}
    tensors |= {f"{_PREFIX}{name}": _whole(checkpoint, parts, theirs[name]) for name, parts in replaced.items()}
    modules = [name.removesuffix(".weight") for name, info in theirs.items() if len(info.shape) == 2]
    config = _config(checkpoint, family, found, modules)
    config |= {"base_model_name_or_path": base, "modules_to_save": _modules(replaced) or None}
    with new_folder(out) as draft:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, draft / "adapter_model.safetensors")
        (draft / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return list(found)


def _layer(pair: Pair) -> str:
    return pair.ours.name.removesuffix(".weight")


def _was_trained(checkpoint: CheckpointTensors, parts: Sequence[Pair]) -> bool:
    """Whether a tensor was trained as it is; an adapted one is frozen itself."""
    return any(part.ours.name in checkpoint.infos and part.ours.name not in checkpoint.frozen for part in parts)


def _modules(tensors: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(name.rpartition(".")[0] for name in tensors))


def _config(
    checkpoint: CheckpointTensors, family: Family, found: Mapping[str, _Adapter], modules: Sequence[str]
) -> dict[str, Any]:
    lora = checkpoint.lora
    architecture = str(family.write(checkpoint.config).get("architectures", family.architectures)[0])
    joined = {module: len(adapter.a_RI) for module, adapter in found.items() if len(adapter.a_RI) != lora.rank}
    # One rank for all is said once; else those of joined layers by name.
    whole = set(joined.values()) if len(joined) == len(found) else set()
    rank = whole.pop() if len(whole) == 1 else lora.rank
    ranks = {} if rank != lora.rank else joined
    return {
        "peft_type": "LORA",
        "task_type": next((task for end, task in _TASKS.items() if architecture.endswith(end)), None),
        "inference_mode": True,
        "r": rank,
        "lora_alpha": lora.alpha * rank / lora.rank,
        "lora_dropout": lora.dropout,
        "rank_pattern": ranks,
        "alpha_pattern": {module: lora.alpha * joined_rank / lora.rank for module, joined_rank in ranks.items()},
        "target_modules": _targets(list(found), modules),
        "fan_in_fan_out": any(adapter.is_transposed for adapter in found.values()),
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
    }


def _targets(found: Sequence[str], modules: Sequence[str]) -> list[str]:
    """The last parts of the modules' names where all that are called so are adapted, else their whole names."""
    last = {module: module.rpartition(".")[2] for module in modules}
    targets = {
        last[name] if all(other in found for other in modules if last[other] == last[name]) else name for name in found
    }
    return sorted(targets)


def _joined(checkpoint: CheckpointTensors, parts: Sequence[Pair], shape: tuple[int, ...]) -> _Adapter:
    """One adapter for all of our layers that lie in a matrix of theirs."""
    factors = {part: checkpoint.factors(_layer(part)) for part in parts if _layer(part) in checkpoint.adapters}
    is_transposed = _is_transposed(next(iter(factors)), shape, checkpoint)
    b_OR = torch.zeros(shape[1] if is_transposed else shape[0], sum(len(a_RI) for a_RI, _ in factors.values()))
    first = 0
    for part, (a_RI, own_OR) in factors.items():
        places = _positions(part.theirs, torch.arange(len(own_OR)).numpy() * a_RI.shape[1])
        rows = places % shape[1] if is_transposed else places // shape[1]
        b_OR[torch.from_numpy(rows), first : first + len(a_RI)] = own_OR
        first += len(a_RI)
    return _Adapter(torch.cat([a_RI for a_RI, _ in factors.values()]), b_OR, is_transposed)


def _is_transposed(part: Pair, shape: tuple[int, ...], checkpoint: CheckpointTensors) -> bool:
    """Whether their matrix is input x output: two neighbours in a row of ours then lie in different rows of theirs."""
    here, next_here = _positions(part.theirs, np.arange(2)) // shape[1]
    return checkpoint.infos[part.ours.name].shape[1] > 1 and bool(here != next_here)


def _positions(view: View, places: Any) -> Any:
    """Where elements of one of our flattened tensors lie in theirs."""
    along = np.unravel_index(places, view.shape)
    return view.offset + sum(index * stride for index, stride in zip(along, view.strides, strict=True))


def _whole(checkpoint: CheckpointTensors, parts: Sequence[Pair], info: TensorInfo) -> Tensor:
    """A tensor of theirs, put together of ours."""
    flat = torch.zeros(info.numel)
    for part in parts:
        if part.ours.name in checkpoint.infos:
            values = checkpoint.read(part.ours.name, 0, checkpoint.infos[part.ours.name].numel).float()
            flat[torch.from_numpy(_positions(part.theirs, np.arange(len(values))))] = values
    return flat.view(info.shape)
