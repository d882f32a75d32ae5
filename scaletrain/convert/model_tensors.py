"""What tensors a model has, without building it."""

import torch

from scaletrain.config.schema import ModelConfig
from scaletrain.convert.checkpoint_tensors import CheckpointTensors
from scaletrain.convert.tensors import TensorInfo
from scaletrain.errors import CheckpointError
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


def require_tensors(source: CheckpointTensors) -> None:
    """Checks that a checkpoint holds the tensors of the model that its configuration describes.

    Raises:
        CheckpointError: It lacks some, or has others.
    """
    expected = {name: info.shape for name, info in infos_of(source.config).items()}
    found = {name: info.shape for name, info in source.infos.items()}
    wrong = sorted(name for name in expected | found if expected.get(name) != found.get(name))
    if wrong:
        first, others = wrong[0], len(wrong) - 1
        raise CheckpointError(
            f"{source.folder} does not hold the model of its config.yaml: {first} is {found.get(first, 'missing')} in "
            f"the one and {expected.get(first, 'unknown')} in the other, and {others} others differ. Choose another "
            f"checkpoint."
        )
