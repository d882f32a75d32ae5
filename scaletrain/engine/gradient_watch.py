"""Looks at the gradients of this rank before they are reduced, without making the host wait for a GPU."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

_MOST_KEPT = 4096


class GradientWatch:
    """Tells after a step whether a gradient of this rank alone was not finite, and spoils a step that must not count.

    DeepSpeed reduces gradients as they come. Behind the reduction every rank has the same NaN, and nobody can tell
    whose it was. So the sum of each gradient is taken before: one small kernel for each parameter, whose result stays
    on the device until somebody asks.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sets hooks on tensors, which run before those of DeepSpeed and see what this rank's backward pass made.

        Args:
            parameters: Those that are trained, already handed to DeepSpeed.
        """
        self._sums: list[Tensor] = []
        self._spoil: Tensor | None = None
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        for parameter in trained:
            parameter.register_hook(self._see)  # type: ignore[no-untyped-call]  # torch does not annotate it
        # Behind the other hook, so that what is spoilt on purpose is not taken for a fault of this rank.
        min(trained, key=_numel).register_hook(self._spoil_gradient)  # type: ignore[no-untyped-call]  # as above

    def begin(self) -> None:
        """Forgets the step before."""
        self._sums.clear()
        self._spoil = None

    def spoil_unless(self, finite: Tensor) -> None:
        """Makes a gradient of the next backward pass NaN where a number is not finite.

        Every rank has the same number, so that the step is left out on all of them, for whatever stage and optimizer:
        all of these look for gradients that are not finite.

        Args:
            finite: Any tensor on the device.
        """
        self._spoil = torch.where(torch.isfinite(finite).all(), 1.0, torch.nan)

    def saw_non_finite(self) -> bool:
        """Whether a gradient of this rank was not finite since ``begin``; waits for the device."""
        return bool(self._sums) and not bool(torch.isfinite(_joined(self._sums)))

    def _see(self, gradient: Tensor) -> None:
        if len(self._sums) >= _MOST_KEPT:
            self._sums = [_joined(self._sums)]
        # The sum of finite bf16 numbers is finite in bf16 as in fp32, and several times quicker to have on a CPU.
        dtype = torch.float32 if gradient.dtype == torch.float16 else gradient.dtype
        self._sums.append(gradient.sum(dtype=dtype))

    def _spoil_gradient(self, gradient: Tensor) -> Tensor | None:
        # Times 1 every bit stays as it is.
        return None if self._spoil is None else gradient * self._spoil.to(gradient.dtype)


def _numel(parameter: nn.Parameter) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _joined(sums: list[Tensor]) -> Tensor:
    return torch.stack([one.float() for one in sums]).sum()
