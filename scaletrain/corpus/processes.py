"""Worker processes that take tasks and give results back in the order in which the tasks came."""

import ctypes
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import chain, islice
from typing import TypeVar

from scaletrain.errors import DataError

Task = TypeVar("Task")
Result = TypeVar("Result")

_PR_SET_PDEATHSIG = 1  # from <sys/prctl.h>
# Enough that no worker waits while a slow result is waited for, and few enough that memory stays bounded.
_TASKS_AHEAD_PER_WORKER = 3


def run_in_order(
    function: Callable[[Task], Result], tasks: Iterable[Task], num_workers: int
) -> Iterator[tuple[Task, Result]]:
    """Calls a function on tasks in several processes.

    Args:
        function: What is done to a task; it travels to another process, as tasks and results do.
        tasks: Taken one after the other, a bounded number ahead of the results.
        num_workers: Processes; with 0, or only one task, the function is called here.

    Yields:
        Each task with its result, in the order of the tasks.

    Raises:
        DataError: A worker died.
    """
    coming = iter(tasks)
    first = list(islice(coming, 2))
    if num_workers == 0 or len(first) < 2:
        for task in chain(first, coming):
            yield task, function(task)
        return
    # Not forked: this process has threads, whose locks a fork would copy as they are.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_workers, context, _begin, (os.getpid(),))
    running: deque[tuple[Task, Future[Result]]] = deque()
    try:
        for task in chain(first, coming):
            with _interrupts_held_back():  # a process may be started here, and inherits this
                running.append((task, pool.submit(function, task)))
            if len(running) > num_workers * _TASKS_AHEAD_PER_WORKER:
                yield _next(running)
        while running:
            yield _next(running)
    except BrokenProcessPool:
        raise DataError(
            f"One of the {num_workers} worker processes died, perhaps for lack of memory. What is finished is kept: "
            "give the same command with fewer --num_workers."
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _next(running: deque[tuple[Task, Future[Result]]]) -> tuple[Task, Result]:
    task, future = running.popleft()
    return task, future.result()


def _begin(parent: int) -> None:
    """Prepares a worker: it ends with its parent, leaves Ctrl-C to it, and works in one thread."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the kernel was asked
        os.kill(os.getpid(), signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
