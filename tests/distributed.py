"""Runs a function on N real ranks, each a process of its own, over gloo.

The processes are forked from a server that has imported torch and deepspeed already, so that a test pays
milliseconds for them instead of seconds.
"""

import gc
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["torch", "deepspeed", "scaletrain.training.run", "deepspeed.runtime.zero.muon.original_muon"]
)


def run_on_ranks(world_size: int, body: Callable[..., Any], *args: Any, timeout_s: float = 120) -> list[Any]:
    """Calls ``body(*args)`` on every rank and returns what each returned.

    Args:
        world_size: Number of ranks.
        body: An importable function; in it torch.distributed is up.
        *args: Picklable arguments.
        timeout_s: Bound for all ranks together.

    Returns:
        Picklable results, by rank.

    Raises:
        AssertionError: A rank raised, died or took too long; the message holds its traceback.
    """
    if world_size not in _GROUPS:
        _GROUPS[world_size] = _RankGroup(world_size)
    try:
        return _GROUPS[world_size].call(body, args, timeout_s)
    except BaseException:
        # Ranks that failed are in no known state: the next test gets new ones.
        _GROUPS.pop(world_size).kill()
        raise


class _RankGroup:
    """Ranks that stay alive between tests, connected once."""

    def __init__(self, world_size: int) -> None:
        port = _free_port()
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(world_size):
            ours, theirs = _CONTEXT.Pipe()
            process = _CONTEXT.Process(target=_rank_main, args=(theirs, rank, world_size, port), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def call(self, body: Callable[..., Any], args: Any, timeout_s: float) -> list[Any]:
        for pipe in self._pipes:
            pipe.send((body, args))
        results: dict[int, Any] = {}
        pending = dict(enumerate(self._pipes))
        while pending:
            ready = wait(list(pending.values()), timeout=timeout_s)
            assert ready, f"ranks {sorted(pending)} did not finish within {timeout_s} s"
            for rank, pipe in list(pending.items()):
                if pipe not in ready:
                    continue
                try:
                    ok, value = pipe.recv()
                except EOFError:
                    ok, value = False, "died without a word"
                assert ok, f"rank {rank}: {value}"
                results[rank] = value
                del pending[rank]
        return [results[rank] for rank in range(len(self._pipes))]

    def kill(self) -> None:
        for process in self._processes:
            process.kill()
            process.join(timeout=10)


_GROUPS: dict[int, _RankGroup] = {}


def _rank_main(pipe: Connection, rank: int, world_size: int, port: int) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        DS_ACCELERATOR="cpu",
    )
    import torch
    import torch.distributed as dist

    gc.freeze()  # DeepSpeed collects whenever it builds an engine, and what was imported is most of what is looked at
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    while True:
        try:
            body, args = pipe.recv()
        except EOFError:  # the test process is gone
            return
        try:
            pipe.send((True, body(*args)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
