"""A PEFT folder, ``adapter_config.json`` with its weights: which tensors of a model it changes, and how.

The names in its file are those of the model that was trained, behind ``base_model.model.``: of a module that is adapted
``lora_A.weight`` and ``lora_B.weight``, of an embedding ``lora_embedding_A`` and ``lora_embedding_B``; under the name
of a tensor itself what replaces it.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scaletrain.convert.safetensors_files import SafetensorsFolder
from scaletrain.convert.tensors import TensorInfo, Tensors
from scaletrain.convert.torch_files import TorchFolder
from scaletrain.errors import CheckpointError, ConfigError

CONFIG = "adapter_config.json"
_SAFETENSORS = "adapter_model.safetensors"
_PICKLE = "adapter_model.bin"

_PREFIX = "base_model.model."
_LOW_RANK = re.compile(r"(.+)\.lora_(?:(A|B)\.(weight|bias)|embedding_(A|B))")
# Modules that PEFT puts around those of the model.
_WRAPPERS = re.compile(r"\.(?:base_layer|modules_to_save(?:\.default)?)(?=\.)")

# What an adapter's configuration may ask for beyond W + scale B A, each with the reason why it cannot be merged.
_REFUSED = {
    "use_dora": "DoRA turns the weights in another way than by adding a product",
    "target_parameters": "it adapts parameters that are no module's weight",
    "layer_replication": "it makes a model of repeated layers",
    "trainable_token_indices": "it replaces single rows of an embedding",
    "megatron_config": "its weights are cut for tensor parallelism",
    "alora_invocation_tokens": "it acts only behind certain tokens, which weights cannot tell",
    "use_qalora": "its A is of pooled inputs",
    "monteclora_config": "it draws samples of its weights",
    "use_bdlora": "its matrices are block-diagonal",
    "arrow_config": "it chooses between several adapters for each token",
    "kasa_config": "it changes the model's own weights too",
    "velora_config": "it is a variant that is not known here to be a sum alone",
    "ensure_weight_tying": "it adapts one tensor in two places",
}
# These leave the model's own weights as they are. Others, as PiSSA, take a part out of them when they begin: the
# adapter then belongs to what was left.
_INITIALISATIONS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")


@dataclass(frozen=True)
class LowRank:
    """A product that is added to a weight.

    Attributes:
        a: Name in the adapter's file of A: (r, in), of an embedding (r, rows).
        b: Name of B: (out, r), of an embedding (columns, r).
        scale: What the product is multiplied by.
        is_embedding: Whether the weight is an embedding, so that the product is transposed.
    """

    a: str
    b: str
    scale: float
    is_embedding: bool


@dataclass(frozen=True)
class Change:
    """What an adapter does to one tensor, in this order.

    Attributes:
        replacement: Name in the adapter's file of what takes its place.
        low_rank: The product that is added.
        added: Name in the adapter's file of a tensor that is added, and what that is multiplied by.
    """

    replacement: str | None = None
    low_rank: LowRank | None = None
    added: tuple[str, float] | None = None


def open_adapter(folder: Path) -> Tensors:
    """Opens the tensors of an adapter.

    Args:
        folder: PEFT folder, with ``adapter_model.safetensors`` or ``adapter_model.bin``.

    Raises:
        CheckpointError: There is none, or it cannot be read without running code in it.
    """
    if (folder / _SAFETENSORS).is_file():
        return SafetensorsFolder(folder / _SAFETENSORS)
    if (folder / _PICKLE).is_file():
        return TorchFolder(folder / _PICKLE)
    raise CheckpointError(f"{folder} holds neither {_SAFETENSORS} nor {_PICKLE}; give the folder of an adapter")


def read_changes(folder: Path, config: Mapping[str, Any], infos: Mapping[str, TensorInfo]) -> dict[str, Change]:
    """Tells what an adapter does to a model.

    Args:
        folder: The PEFT folder, for messages.
        config: Content of its ``adapter_config.json``.
        infos: Its tensors.

    Returns:
        What is done to each tensor that is changed, by its name in the model that was trained.

    Raises:
        CheckpointError: The configuration does not fit the tensors.
        ConfigError: The adapter is not of a kind that can be merged.
    """
    _refuse(folder, config)
    factors: dict[str, dict[str, str]] = {}
    changes: dict[str, Change] = {}
    unknown = []
    for stored in infos:
        name = stored.removeprefix(_PREFIX)
        match = _LOW_RANK.fullmatch(name)
        if match:
            factor = f"embedding_{match[4]}" if match[4] else f"{match[2]}.{match[3]}"
            factors.setdefault(match[1], {})[factor] = stored
        elif any(part.startswith(("lora_", "token_adapter")) for part in name.split(".")):
            unknown.append(stored)
        else:
            changes[_WRAPPERS.sub("", f".{name}")[1:]] = Change(replacement=stored)
    if unknown:
        raise ConfigError(_told(f"{folder}: tensors of a kind that cannot be merged into weights", unknown))
    for module, found in factors.items():
        _add(changes, module, found, config, infos)
    if not changes:
        raise CheckpointError(f"{folder} changes nothing: its file holds no tensor; give the folder of an adapter")
    return changes


def _refuse(folder: Path, config: Mapping[str, Any]) -> None:
    kind = str(config.get("peft_type"))
    if kind != "LORA":
        raise ConfigError(
            f"{folder / CONFIG}: peft_type {kind} is no LoRA; only LORA is merged here: merge it with peft's own "
            "merge_and_unload"
        )
    asked = [f"{key}: {reason}" for key, reason in _REFUSED.items() if config.get(key)]
    begun = config.get("init_lora_weights", True)
    if begun not in _INITIALISATIONS:
        asked.append(
            f"init_lora_weights: {begun} took a part out of the model's weights; save the adapter anew with "
            "path_initial_model_for_weight_conversion, which makes a plain LoRA of it"
        )
    if asked:
        raise ConfigError(_told(f"{folder / CONFIG} asks for what cannot be merged here", asked))


def _add(
    changes: dict[str, Change],
    module: str,
    found: Mapping[str, str],
    config: Mapping[str, Any],
    infos: Mapping[str, TensorInfo],
) -> None:
    is_embedding = any(factor.startswith("embedding_") for factor in found)
    a, b = ("embedding_A", "embedding_B") if is_embedding else ("A.weight", "B.weight")
    extra = sorted(set(found) - {a, b, "B.bias"})
    if extra or a not in found or b not in found:
        raise CheckpointError(f"the adapter's {module} has {', '.join(sorted(found))}; it must have {a} and {b}")
    shapes = infos[found[a]].shape, infos[found[b]].shape
    rank = int(_by_pattern(config, "rank_pattern", module, config.get("r", 8)))
    if len(shapes[0]) != 2 or len(shapes[1]) != 2:
        raise ConfigError(f"the adapter's {module} is a convolution, {list(shapes[0])}; only matrices are merged")
    if shapes[0][0] != rank or shapes[1][1] != rank:
        raise CheckpointError(
            f"the adapter's {module} has rank {shapes[0][0]} and {shapes[1][1]} in its file, {rank} in {CONFIG}; "
            "give the configuration that it was trained with"
        )
    alpha = float(_by_pattern(config, "alpha_pattern", module, config.get("lora_alpha", 8)))
    scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    weight = f"{module}.weight"
    low_rank = LowRank(found[a], found[b], scale, is_embedding)
    changes[weight] = replace(changes.get(weight, Change()), low_rank=low_rank)
    if "B.bias" in found:
        bias = f"{module}.bias"
        changes[bias] = replace(changes.get(bias, Change()), added=(found["B.bias"], scale))


def _by_pattern(config: Mapping[str, Any], key: str, module: str, default: Any) -> Any:
    """The value of the first pattern that matches the end of a module's name, from a dot on; PEFT's rule."""
    for pattern, value in (config.get(key) or {}).items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except re.error as error:
            raise ConfigError(f"{CONFIG}: {key}: {pattern} is no regular expression: {error}") from None
    return default


def _told(title: str, items: list[str]) -> str:
    return title + ":" + "".join(f"\n  {item}" for item in items)
