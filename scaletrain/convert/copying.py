"""Copies tensors into files slice by slice, so that memory does not depend on their size."""

import multiprocessing
import os
import shutil
import signal
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from scaletrain.convert.pairs import Copy, View, cut
from scaletrain.convert.placing import Place
from scaletrain.convert.tensors import Tensors
from scaletrain.errors import CheckpointError, ConfigError
from scaletrain.lifetime import end_with

# Elements that are in memory at once: 4 MiB of fp32, which stay in the processor's cache until they are written.
_SLICE_ELEMENTS = 1 << 20
# Elements after which mapped files are unmapped: their pages count as memory of the process.
_RELEASE_ELEMENTS = 16 << 20
# Elements of a piece of work for one of several processes.
_WORK_ELEMENTS = 64 << 20
# A box whose elements lie so much further apart than it has elements is read run by run.
_MOST_SPREAD = 4


def copy_tensors(
    open_source: Callable[[], Tensors], copies: Sequence[Copy], places: Mapping[str, Place], processes: int = 1
) -> None:
    """Copies boxes of tensors into files, in the types of the places, and forces these to the disk.

    Args:
        open_source: Opens the tensors to read; with several processes it is pickled.
        copies: What is copied where.
        places: Of the targets' tensors, by name; their files have their full sizes.
        processes: How many processes share the work.

    Raises:
        CheckpointError: A tensor cannot be read, or a number is too large for fp16.
        ConfigError: The disk has no room for all, or a process was ended from outside.
        OSError: A file cannot be written.
    """
    _check_room(places)
    if processes == 1:
        _copy_all(open_source, copies, places)
    else:
        work = [part for copy in copies for part in cut(copy, _WORK_ELEMENTS)]
        _copy_in_processes(open_source, _shares(work, processes), places)


def _copy_in_processes(
    open_source: Callable[[], Tensors], shares: Sequence[Sequence[Copy]], places: Mapping[str, Place]
) -> None:
    # Spawned, not forked: a fork of a process with torch's threads may hang. And no ProcessPoolExecutor: Python 3.11's
    # does not see that the worker it started last has died, until another one is done.
    context = multiprocessing.get_context("spawn")
    workers: dict[Connection, SpawnProcess] = {}
    try:
        for share in shares:
            ours, theirs = context.Pipe(duplex=False)
            needed = {copy.target.name: places[copy.target.name] for copy in share}
            workers[ours] = context.Process(target=_copy_share, args=(os.getpid(), theirs, open_source, share, needed))
            workers[ours].start()
            theirs.close()
        waiting = set(workers)
        while waiting:
            for done in wait(waiting):
                assert isinstance(done, Connection)
                _raise_error(done)
                waiting.remove(done)
    finally:
        # Where one failed, what the others still write is of no use to anyone.
        for connection, process in workers.items():
            connection.close()
            if process.pid is not None:
                process.terminate()
                process.join()


def _copy_share(
    parent: int,
    result: Connection,
    open_source: Callable[[], Tensors],
    copies: Sequence[Copy],
    places: Mapping[str, Place],
) -> None:
    """Copies in a process of its own, which says at the end what went wrong, or that nothing did."""
    end_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to handle
    try:
        _copy_all(open_source, copies, places)
    except Exception as error:  # whatever it is, the parent raises it
        error.add_note(traceback.format_exc())
        result.send(error)
    else:
        result.send(None)


def _raise_error(result: Connection) -> None:
    try:
        error = result.recv()
    except EOFError:
        raise ConfigError(
            "one of the processes that copied was ended from outside, as the system does when memory is short; "
            "give fewer --processes"
        ) from None
    if error is not None:
        raise error


def _check_room(places: Mapping[str, Place]) -> None:
    if not places:
        return
    files = {place.path for place in places.values()}
    need = sum(file.stat().st_size - file.stat().st_blocks * 512 for file in files)
    folder = next(iter(files)).parent
    free = shutil.disk_usage(folder).free
    if need > free:
        raise ConfigError(
            f"the result needs {need / 2**30:.2f} GiB more, but {free / 2**30:.2f} GiB are free on the disk of --out; "
            "make room, or give another --out"
        )


def _shares(work: Sequence[Copy], processes: int) -> list[list[Copy]]:
    """Work for each process, of about the same number of elements, in the order of the files."""
    share_elements = sum(copy.source.numel for copy in work) / processes
    shares: list[list[Copy]] = [[]]
    filled = 0
    for copy in work:
        if shares[-1] and filled + copy.source.numel / 2 > share_elements * len(shares) and len(shares) < processes:
            shares.append([])
        shares[-1].append(copy)
        filled += copy.source.numel
    return shares


def _copy_all(open_source: Callable[[], Tensors], copies: Sequence[Copy], places: Mapping[str, Place]) -> None:
    source = open_source()
    copied = 0
    with _Files() as files:
        for copy in copies:
            for part in cut(copy, _SLICE_ELEMENTS):
                values = read_box(source, part.source)
                _write_box(files, places[part.target.name], part.target, values)
                copied += values.numel()
                if copied >= _RELEASE_ELEMENTS:
                    source.release()
                    copied = 0
    source.release()


def read_box(source: Tensors, view: View) -> Tensor:
    """Reads a box of a tensor.

    Args:
        source: Where the tensor is.
        view: The box.

    Returns:
        A tensor of the box's shape, in the stored type; in memory it lies in any order.
    """
    if not view.numel:
        return torch.empty(view.shape, dtype=source.infos[view.name].dtype)
    span = 1 + sum((side - 1) * stride for side, stride in zip(view.shape, view.strides, strict=True))
    if span <= _MOST_SPREAD * view.numel:
        flat = source.read(view.name, view.offset, span)
        return flat.as_strided(view.shape, view.strides)
    # Read along the narrowest strides, which is how the numbers lie, and put in order afterwards.
    order = tuple(sorted(range(len(view.shape)), key=lambda side: -view.strides[side]))
    ordered = view.permute(order)
    runs = [source.read(view.name, start, length) for start, length in runs_of(ordered)]
    back = tuple(order.index(side) for side in range(len(order)))
    return torch.cat(runs).view(ordered.shape).permute(back)


def runs_of(view: View) -> list[tuple[int, int]]:
    """Ranges of a flattened tensor that follow each other in a box.

    Args:
        view: The box, its widest stride first.

    Returns:
        First element and number of elements of each, in the box's order.
    """
    length, outer = 1, len(view.shape)
    while outer and (view.shape[outer - 1] == 1 or view.strides[outer - 1] == length):
        length *= view.shape[outer - 1]
        outer -= 1
    starts = torch.tensor([view.offset])
    for side, stride in zip(view.shape[:outer], view.strides[:outer], strict=True):
        starts = (starts.unsqueeze(-1) + stride * torch.arange(side)).flatten()
    return [(start, length) for start in starts.tolist()]


class _Files:
    """Open files that are being written; the one before is forced to the disk when the next is opened."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._close(forces=kind is None)

    def open(self, path: Path) -> int:
        if path != self._path:
            self._close(forces=True)
            self._path, self._descriptor = path, os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        return self._descriptor

    def _close(self, forces: bool) -> None:
        if self._path is None:
            return
        try:
            if forces:
                os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)
            self._path = None


def _write_box(files: _Files, place: Place, view: View, values: Tensor) -> None:
    """Writes a box, its widest stride first."""
    written = values.to(place.info.dtype)
    if place.info.dtype == torch.float16 and values.dtype != torch.float16:
        _refuse_overflow(values, written, view.name)
    content = written.contiguous().view(-1).view(torch.uint8).numpy().data
    size = place.info.dtype.itemsize
    descriptor = files.open(place.path)
    position = 0
    for start, length in runs_of(view):
        rest, offset = content[position : position + length * size], place.offset + start * size
        position += length * size
        while rest:
            count = os.pwrite(descriptor, rest, offset)
            rest, offset = rest[count:], offset + count


def _refuse_overflow(values: Tensor, written: Tensor, name: str) -> None:
    lost = values[values.isfinite() & ~written.isfinite()]
    if lost.numel():
        raise CheckpointError(
            f"{name} holds {float(lost.abs().max()):g}, but fp16 ends at 65504; give --dtype bf16 or fp32"
        )
