"""Worker processes that take tasks and give results back in the order in which the tasks came."""

import contextlib
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import TypeVar, cast

from scaletrain.errors import DataError, ScaletrainError
from scaletrain.lifetime import end_with

Task = TypeVar("Task")
Result = TypeVar("Result")

# Enough that no worker waits while a slow result is waited for, and few enough that memory stays bounded.
_TASKS_AHEAD_PER_WORKER = 3
_ITEMS_AT_ONCE = 64


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


def call_with_stream(function: Callable[[Iterable[Task]], Result], items: Iterable[Task]) -> Result:
    """Calls a function in a process of its own, which ends with whatever ends the waiting for it, such as Ctrl-C.

    Args:
        function: Takes the items; it travels to the other process, as items and result do.
        items: Taken here, a pipe's length ahead.

    Returns:
        What the function returned.

    Raises:
        DataError: The process died.
        ScaletrainError: The function raised it.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_consume, args=(os.getpid(), function, theirs), daemon=True)
    with _interrupts_held_back():
        process.start()
    theirs.close()
    try:
        # It may be done, or have failed, before it took all.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            coming = iter(items)
            while batch := list(islice(coming, _ITEMS_AT_ONCE)):
                ours.send(batch)
            ours.send([])
        result, error = ours.recv()
    except (EOFError, ConnectionResetError):
        raise DataError(
            "The process that trains the tokenizer died, perhaps for lack of memory. Give a smaller --train_tokenizer, "
            "or a --tokenizer."
        ) from None
    finally:
        process.kill()
        process.join()
        ours.close()
    if error is not None:
        raise error
    return cast(Result, result)


def _consume(parent: int, function: Callable[[Iterable[Task]], Result], connection: Connection) -> None:
    _end_with(parent)
    try:
        connection.send((function(chain.from_iterable(iter(connection.recv, []))), None))
    except ScaletrainError as error:
        connection.send((None, error))


def _next(running: deque[tuple[Task, Future[Result]]]) -> tuple[Task, Result]:
    task, future = running.popleft()
    return task, future.result()


def _begin(parent: int) -> None:
    """Prepares a worker, which works in one thread."""
    _end_with(parent)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _end_with(parent: int) -> None:
    """Lets this process end with its parent, and leave Ctrl-C to it."""
    end_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    resource_tracker.ensure_running()  # its start, which belongs to that of the first process, lets interrupts through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
