"""Names of activations in ``config.json``."""

from typing import Any

from scaletrain.errors import ConfigError

_OURS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}
_THEIRS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu"}


def unify_gelu(value: Any) -> str:
    """The older of two names of one function.

    Args:
        value: The name in ``config.json``.

    Raises:
        ConfigError: The model here does not have it.
    """
    return write_gelu(read_gelu(value))


def write_gelu(activation: str) -> str:
    """The name of one of ours; of one with a gate that of another, which whoever reads it again finds to differ."""
    return _THEIRS.get(activation, "gelu")


def read_gelu(value: Any) -> str:
    """The name in a ModelConfig; see ``unify_gelu``."""
    if value not in _OURS:
        raise ConfigError(
            f"config.json asks for the activation {value}; in this family the model here has {', '.join(sorted(_OURS))}"
        )
    return _OURS[value]
