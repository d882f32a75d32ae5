"""Models that hold no weights: a module gets its own just before it runs, and loses them after.

So a model of any size runs in the memory of its largest module and of its activations.
"""

import mmap
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from scaletrain.convert.tensors import Tensors
from scaletrain.errors import CheckpointError

_Model = TypeVar("_Model", bound=nn.Module)

_SLICE = 2**22  # numbers read at once: 16 MiB in fp32

_SMALL = 2**14  # numbers for which the heap is good enough


def build_without_weights(build: Callable[[], _Model]) -> _Model:
    """Builds a model whose parameters have a shape and no memory.

    Buffers are computed and kept as usual, unlike under ``torch.device("meta")``: rotary frequencies are buffers of
    many models, and are in no file. A parameter's memory is asked for, but moved away before anything writes to it,
    so that the system never provides it.

    Args:
        build: Makes the model.

    Returns:
        The model, for evaluation, with its parameters on the meta device; tied ones are one object still.
    """

    def without_memory(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:
            return parameter
        return nn.Parameter(parameter.detach().to("meta"), requires_grad=False)

    # Its annotation has no room for a replacement, its documentation has.
    handle = register_module_parameter_registration_hook(cast(Callable[..., None], without_memory))
    try:
        return build().eval()
    finally:
        handle.remove()


class WeightSource(Generic[_Model]):
    """Where a model's weights lie: finds the stored tensor of each parameter, and reads it.

    Args:
        model: A model without weights.
        tensors: The stored tensors.
        side: How messages call them.
        spellings: Names under which a parameter of this name may be stored, the likeliest first.
    """

    def __init__(
        self,
        model: _Model,
        tensors: Tensors,
        side: str,
        spellings: Callable[[str], Iterable[str]] = lambda name: (name,),
    ) -> None:
        self.model = model
        self.tensors = tensors
        self.infos = dict(tensors.infos)
        self.side = side
        self.read_names: set[str] = set()
        self.not_finite: list[str] = []
        self._spellings = spellings
        self._numel_mapped = 0
        self._names: dict[int, list[str]] = {}  # all names of each parameter: several where it is tied
        for name, parameter in model.named_parameters(remove_duplicate=False):
            self._names.setdefault(id(parameter), []).append(name)
        self._stored = {name: self._find(name, names) for names in self._names.values() for name in names}
        # What is saved though nothing trains it.
        saved = model.state_dict(keep_vars=True).keys()
        self.buffers = {name: buffer for name, buffer in model.named_buffers() if name in saved}
        self._stored |= {name: self._find(name, [name]) for name in self.buffers}

    def stored_name(self, parameter: str) -> str:
        """Finds the stored tensor of a parameter.

        Args:
            parameter: Its name in the model.

        Returns:
            The tensor's own name; that of a parameter it is tied to where only the other is stored.

        Raises:
            CheckpointError: There is none.
        """
        stored = self._stored[parameter]
        if stored is None:
            raise CheckpointError(
                f"{self.side} has no tensor {parameter}, which the model of its configuration needs. The conversion is "
                f"incomplete, or the configuration describes another model."
            )
        return stored

    def is_stored(self, parameter: str) -> bool:
        """Whether there is a tensor of this parameter or buffer."""
        return self._stored[parameter] is not None

    def unread(self) -> list[str]:
        """Names of the stored tensors that no module has asked for so far."""
        return sorted(set(self.infos) - self.read_names)

    def load(self, parameter: str, shape: torch.Size, round_to: torch.dtype | None) -> Tensor:
        """Reads one parameter, in slices, so that the stored form is never in memory as a whole.

        Args:
            parameter: Its name in the model.
            shape: Its shape in the model.
            round_to: Dtype that its numbers are rounded to on the way; None leaves them.

        Returns:
            A tensor of that shape in fp32. A tensor with a number that is not finite is noted in ``not_finite``.

        Raises:
            CheckpointError: It is not stored, or in another shape.
        """
        name = self.stored_name(parameter)
        info = self.infos[name]
        if tuple(info.shape) != tuple(shape):
            raise CheckpointError(
                f"{self.side} holds {name} in the shape {tuple(info.shape)}, but the model of its configuration needs "
                f"{tuple(shape)}. The configuration describes another model."
            )
        flat = allocate(info.numel)
        is_finite = True
        for start, piece in self.slices(parameter, round_to):
            flat[start : start + len(piece)] = piece
            is_finite = is_finite and bool(torch.isfinite(flat[start : start + len(piece)]).all())
        if not is_finite and name not in self.not_finite:
            self.not_finite.append(name)
        self.read_names.add(name)
        return flat.view(shape)

    def slices(self, parameter: str, round_to: torch.dtype | None) -> Iterator[tuple[int, Tensor]]:
        """Reads a parameter piece by piece, in whole rows, and gives mapped memory back now and then.

        Args:
            parameter: Its name in the model.
            round_to: Dtype that its numbers are rounded to; None leaves them in the stored one.

        Yields:
            Where a piece begins in the flattened tensor, and the piece.

        Raises:
            CheckpointError: It is not stored.
        """
        name = self.stored_name(parameter)
        numel = self.infos[name].numel
        width = self.infos[name].shape[-1] if self.infos[name].shape else 1
        step = max(1, _SLICE // max(1, width)) * width  # of whole rows
        for start in range(0, numel, step):
            piece = self.tensors.read(name, start, min(step, numel - start))
            self._numel_mapped += len(piece)
            if self._numel_mapped >= _SLICE:
                self.tensors.release()
                self._numel_mapped = 0
            yield start, piece if round_to is None else piece.to(round_to)

    def _find(self, parameter: str, tied: list[str]) -> str | None:
        # Its own name comes first: a file may hold both of two that the configuration calls tied.
        for name in [parameter, *tied]:
            for spelling in self._spellings(name):
                if spelling in self.infos:
                    return spelling
        return None


def allocate(numel: int) -> Tensor:
    """Allocates memory that goes back to the system with the tensor.

    Blocks of the heap would not always: what lives longer and lies behind a block keeps it.

    Args:
        numel: Numbers to hold.

    Returns:
        A tensor (numel,) in fp32.
    """
    if numel < _SMALL:
        return torch.empty(numel, dtype=torch.float32)
    return torch.frombuffer(mmap.mmap(-1, numel * torch.float32.itemsize), dtype=torch.float32)


@contextmanager
def streamed(source: WeightSource[Any], round_to: torch.dtype | None) -> Iterator[None]:
    """Lets the model of a source run: inside, each module gets its weights before its forward and loses them after.

    Args:
        source: The model and where its weights lie.
        round_to: Dtype that the weights are rounded to, to be calculated with in fp32 all the same; None leaves them.
    """
    handles = []
    for name, buffer in source.buffers.items():
        if source.is_stored(name):
            buffer.copy_(source.load(name, buffer.shape, round_to))
    for prefix, module in source.model.named_modules():
        parameters = module.named_parameters(recurse=False, remove_duplicate=False)
        # Others have numbers that the model has computed itself.
        own = {name: parameter for name, parameter in parameters if parameter.is_meta}
        if own:
            handles += _feed(source, module, f"{prefix}." if prefix else "", own, round_to)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _feed(
    source: WeightSource[Any],
    module: nn.Module,
    prefix: str,
    own: dict[str, nn.Parameter],
    round_to: torch.dtype | None,
) -> list[Any]:
    def fill(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        for name, parameter in own.items():
            weights = source.load(prefix + name, parameter.shape, round_to)
            setattr(module, name, nn.Parameter(weights, requires_grad=False))

    def empty(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        for name, parameter in own.items():
            setattr(module, name, parameter)

    return [module.register_forward_pre_hook(fill), module.register_forward_hook(empty, always_call=True)]
