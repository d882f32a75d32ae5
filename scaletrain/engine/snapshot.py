"""Copies of tensors in host memory, taken between two steps so that a save can go on beside the training."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator
from torch import Tensor, nn


class HostCopies:
    """Buffers for one copy of what a rank saves.

    They are used again from save to save: memory that is touched for the first time is slow, and pinned memory costs
    even more to get.
    """

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []

    @property
    def allocated_bytes(self) -> int:
        """What the buffers take."""
        return sum(buffer.numel() for buffer in self._buffers)

    def take(self, content: Any) -> Any:
        """Copies all tensors in plain containers, and waits until they are copied.

        Tensors that share memory share it in the copy too, so that ``torch.save`` writes the same file for both.

        Args:
            content: Dictionaries, lists and tuples with tensors and small objects.

        Returns:
            The same with tensors in host memory. It holds until the next call.
        """
        free: dict[int, list[Tensor]] = {}
        for buffer in self._buffers:
            free.setdefault(buffer.numel(), []).append(buffer)
        copies: dict[int, Tensor] = {}
        for storage in storages(content):
            source = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
            fitting = free.get(source.numel())
            buffer = fitting.pop() if fitting else self._new_buffer(source)
            copies[storage.data_ptr()] = buffer.copy_(source, non_blocking=True)
        get_accelerator().synchronize()
        return _rebuild(content, copies)

    def _new_buffer(self, source: Tensor) -> Tensor:
        pinned = source.device.type == "cuda"
        self._buffers.append(torch.empty(source.numel(), dtype=torch.uint8, device="cpu", pin_memory=pinned))
        return self._buffers[-1]


def storages(content: Any) -> Iterator[torch.UntypedStorage]:
    """The memory behind all tensors in plain containers, each piece once.

    Args:
        content: Dictionaries, lists and tuples with tensors.

    Yields:
        Storages that are not empty.
    """
    seen = set()
    for tensor in _tensors(content):
        storage = tensor.untyped_storage()
        if storage.nbytes() and storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            yield storage


def _tensors(content: Any) -> Iterator[Tensor]:
    if isinstance(content, Tensor):
        yield content
    elif isinstance(content, Mapping):
        for value in content.values():
            yield from _tensors(value)
    elif isinstance(content, list | tuple):
        for value in content:
            yield from _tensors(value)


def _copy_of(tensor: Tensor, copies: Mapping[int, Tensor]) -> Tensor:
    empty = torch.empty(0, dtype=tensor.dtype, device="cpu")
    storage = tensor.untyped_storage()
    if not storage.nbytes():
        return empty.reshape(tensor.shape)
    held = copies[storage.data_ptr()].untyped_storage()
    return empty.set_(held, tensor.storage_offset(), tensor.shape, tensor.stride())


def _rebuild(content: Any, copies: Mapping[int, Tensor]) -> Any:
    if isinstance(content, Tensor):
        copied = _copy_of(content, copies)
        return nn.Parameter(copied, content.requires_grad) if isinstance(content, nn.Parameter) else copied
    if isinstance(content, Mapping):
        # OrderedDict and the like keep their type: files do not depend on whether they were copied first.
        mapping: Any = type(content)()
        for key, value in content.items():
            mapping[key] = _rebuild(value, copies)
        return mapping
    if isinstance(content, list):
        return [_rebuild(value, copies) for value in content]
    if type(content) is tuple:
        return tuple(_rebuild(value, copies) for value in content)
    return copy.deepcopy(content)
