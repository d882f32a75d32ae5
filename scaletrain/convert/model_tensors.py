"""What tensors a model has, without building it."""

import torch

from scaletrain.config.schema import ModelConfig
from scaletrain.convert.tensors import TensorInfo
from scaletrain.model.transformer import Transformer


def infos_of(model: ModelConfig, dtype: torch.dtype = torch.float32) -> dict[str, TensorInfo]:
    """Shapes of all parameters of a Transformer, a tied one once.

    Args:
        model: The description.
        dtype: The type to give them.

    Returns:
        By name, in the order of the model.
    """
    with torch.device("meta"):
        return {name: TensorInfo(tuple(weight.shape), dtype) for name, weight in Transformer(model).named_parameters()}
