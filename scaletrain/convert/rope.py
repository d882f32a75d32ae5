"""Rotary positions in ``config.json``: two generations of keys, one meaning."""

import math
from collections.abc import Mapping
from typing import Any

from scaletrain.config.schema import ModelConfig
from scaletrain.errors import ConfigError

_LLAMA3 = {
    "low_freq_factor": "rope_low_freq_factor",
    "high_freq_factor": "rope_high_freq_factor",
    "original_max_position_embeddings": "rope_original_max_seq_len",
}


def unify_rope(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Gives rotary positions the older keys, which all readers know.

    Since transformers 5 ``rope_parameters`` holds what were ``rope_theta``, ``rope_scaling`` and
    ``partial_rotary_factor``; GPT-NeoX had names of its own.

    Args:
        theirs: The content of ``config.json``.

    Returns:
        The same, with ``rope_theta``, ``partial_rotary_factor`` and ``rope_scaling`` (None where there is none).
    """
    unified = dict(theirs)
    scaling = dict(unified.pop("rope_parameters", None) or unified.get("rope_scaling") or {})
    for key, older in (("rope_theta", "rotary_emb_base"), ("partial_rotary_factor", "rotary_pct")):
        value = scaling.pop(key, None)
        value = unified.pop(older, None) if value is None else value
        if value is not None:
            unified[key] = value
    kind = scaling.pop("rope_type", None) or scaling.pop("type", None) or "default"
    scaling.pop("type", None)
    unified["rope_scaling"] = None if kind == "default" else {"rope_type": kind, **scaling}
    return unified


def read_rope(theirs: Mapping[str, Any], head_dim: int) -> dict[str, Any]:
    """Values of a ModelConfig.

    Args:
        theirs: Keys as ``unify_rope`` gives them.
        head_dim: Width of a head.

    Raises:
        ConfigError: The positions are stretched in a way that the model here does not have.
    """
    values: dict[str, Any] = {"positions": "rotary", "rope_theta": theirs["rope_theta"]}
    values["rotary_dim"] = int(head_dim * theirs["partial_rotary_factor"])
    scaling = dict(theirs["rope_scaling"] or {})
    if not scaling:
        return values
    kind = scaling["rope_type"]
    if kind not in ("linear", "llama3"):
        raise ConfigError(
            f"config.json asks for rope_scaling of the type {kind}, and the model here has linear and llama3"
        )
    values |= {"rope_scaling": kind, "rope_factor": scaling["factor"]}
    if kind == "llama3":
        values |= {ours: scaling[key] for key, ours in _LLAMA3.items()}
    return values


def write_rope(model: ModelConfig) -> dict[str, Any]:
    """Keys of ``config.json``; the opposite of ``read_rope``."""
    factor = model.rotary_dim / model.head_dim
    if int(model.head_dim * factor) < model.rotary_dim:  # readers cut off what rounding left below a whole number
        factor = math.nextafter(factor, 1)
    written: dict[str, Any] = {"rope_theta": model.rope_theta, "partial_rotary_factor": factor, "rope_scaling": None}
    if model.rope_scaling == "linear":
        written["rope_scaling"] = {"rope_type": "linear", "factor": model.rope_factor}
    elif model.rope_scaling == "llama3":
        stretched = {key: getattr(model, ours) for key, ours in _LLAMA3.items()}
        written["rope_scaling"] = {"rope_type": "llama3", "factor": model.rope_factor, **stretched}
    return written
