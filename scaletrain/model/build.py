"""Makes the model that a description asks for."""

from typing import Any

from scaletrain.config.schema import ModelConfig
from scaletrain.model.transformer import Transformer


def build_model(config: ModelConfig, *, checkpoint_activations: bool = False) -> Any:
    """Makes a model with initial weights.

    Args:
        config: Its description.
        checkpoint_activations: Keep only the input of each block in training, and recompute the rest in the backward
            pass.

    Returns:
        The model.

    Raises:
        ConfigError: What the description asks for cannot be together; see ``model_problems``.
    """
    return Transformer(config, checkpoint_activations=checkpoint_activations)
