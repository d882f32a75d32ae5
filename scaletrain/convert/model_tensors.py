"""What tensors a model has, without building it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from scaletrain.config.schema import ModelConfig
from scaletrain.convert.checkpoint_tensors import CheckpointTensors
from scaletrain.convert.tensors import TensorInfo
from scaletrain.errors import CheckpointError
from scaletrain.model.build import build_model

_INITIALISING = (nn.init.normal_, nn.init.zeros_, nn.init.ones_, nn.init.uniform_, nn.init.kaiming_uniform_)


class _Uninitialised(TorchFunctionMode):
    """Leaves out that weights get their first values.

    On the meta device torch would load its compiler for it, which takes a second and 70 MiB.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in (Tensor.normal_, Tensor.zero_, Tensor.uniform_, *_INITIALISING):
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def infos_of(model: ModelConfig, dtype: torch.dtype = torch.float32) -> dict[str, TensorInfo]:
    """Shapes of all parameters of a model, a tied one once.

    Args:
        model: The description.
        dtype: The type to give them.

    Returns:
        By name, in the order of the model.
    """
    with torch.device("meta"), _Uninitialised():
        return {name: TensorInfo(tuple(weight.shape), dtype) for name, weight in build_model(model).named_parameters()}


def tied_names(model: ModelConfig) -> dict[str, str]:
    """Further names of a model's parameters.

    Args:
        model: The description.

    Returns:
        Each with the first name of the same parameter, under which it is stored.
    """
    with torch.device("meta"), _Uninitialised():
        built = build_model(model)
    first = {id(weight): name for name, weight in built.named_parameters()}
    every = built.named_parameters(remove_duplicate=False)
    return {name: first[id(weight)] for name, weight in every if first[id(weight)] != name}


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
