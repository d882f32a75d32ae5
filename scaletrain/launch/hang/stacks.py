"""Stacks of a process that does not answer: read from outside, or written by its own handler of a signal."""

import faulthandler
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

from scaletrain.launch.processes import Process, kill

SIGNAL = signal.SIGRTMIN + 5
"""Has a rank write its stacks. The handler is C code, and runs also where another thread never gives the lock back."""

_PY_SPY_S = 10.0
_BEGIN_S = 3.0  # time in which a handler begins to write, if it ever does
_HANDLER_S = 10.0
_MOST_BYTES = 1 << 20
_COLLECTIVES = ("torch/distributed/", "deepspeed/comm/")
_INNERMOST = 12  # frames: what called the collective long before it came here is no waiting
# ZeRO-3 waits for gathered weights by a method of C++, of which Python shows no frame; a wrapper may be around it.
_GATHERS = "deepspeed/runtime/zero/partition_parameters.py"
_GATHERING = ("gather", "wait")
_WRAPPER = "deepspeed/utils/nvtx.py"
_FAULTHANDLER_FRAME = re.compile(r'^  File "(.*)", line (\d+) in (.*)$')


@dataclass(frozen=True)
class Frame:
    """A call: the function, and the line that it is at."""

    function: str
    file: str
    line: int

    def __str__(self) -> str:
        return f"    {self.function} ({self.file}:{self.line})"


@dataclass(frozen=True)
class Thread:
    """A thread of a process.

    Attributes:
        title: What is known of it, for people.
        frames: Its Python calls, the innermost first.
    """

    title: str
    frames: tuple[Frame, ...]

    def __str__(self) -> str:
        return "\n".join([self.title, *map(str, self.frames)])

    @property
    def collective(self) -> str:
        """The collective that it waits in; empty where it is in none."""
        calls = [frame for frame in self.frames[:_INNERMOST] if any(part in frame.file for part in _COLLECTIVES)]
        named = [frame for frame in calls if frame.file.endswith("distributed_c10d.py")]
        return next((frame.function for frame in (*named, *calls, *self._gathering())), "")

    def _gathering(self) -> tuple[Frame, ...]:
        """The call in which ZeRO-3 waits for weights, where that is the innermost one."""
        innermost = next((frame for frame in self.frames if not frame.file.endswith(_WRAPPER)), None)
        if innermost is None or not innermost.file.endswith(_GATHERS):
            return ()
        return (innermost,) if any(part in innermost.function.lower() for part in _GATHERING) else ()


@dataclass(frozen=True)
class Stacks:
    """All threads of a process, or why they cannot be told."""

    threads: tuple[Thread, ...]
    source: str

    def __str__(self) -> str:
        return "\n".join([f"({self.source})", *map(str, self.threads)])


def offer_stacks() -> int:
    """Has this process, and those that it forks, write their stacks on ``SIGNAL``; into memory, not to a disk.

    Returns:
        Descriptor of the memory.
    """
    descriptor = os.memfd_create("scaletrain-stacks")
    faulthandler.register(SIGNAL, file=descriptor, all_threads=True)
    return descriptor


def take_stacks(process: Process, py_spy: str, memory: int) -> Stacks:
    """Stacks of a process, within ten seconds or so.

    Args:
        process: Whose.
        py_spy: The program py-spy, which needs nothing of the process; empty where there is none.
        memory: What ``offer_stacks`` gave.
    """
    why = "py-spy is not installed"
    if py_spy:
        # Without pausing it: it stands still anyway, and one that is stopped or in the kernel cannot be paused.
        command = [py_spy, "dump", "--nonblocking", "--json", "--pid", str(process.pid)]
        try:
            told = subprocess.run(command, capture_output=True, text=True, timeout=_PY_SPY_S)
            if told.returncode == 0:
                return Stacks(_read_py_spy(told.stdout), "read by py-spy")
            why = f"py-spy: {(told.stderr.strip().splitlines() or ['failed'])[-1]}"
        except (OSError, subprocess.TimeoutExpired, ValueError, KeyError, TypeError) as error:
            why = f"py-spy: {error}"
    return _ask(process, memory, why)


def _read_py_spy(text: str) -> tuple[Thread, ...]:
    threads = []
    for told in json.loads(text):
        holds = ", holds the interpreter's lock" if told.get("owns_gil") else ""
        name = f" {told['thread_name']}" if told.get("thread_name") else ""
        frames = (Frame(frame["name"], frame["filename"], frame["line"]) for frame in told["frames"])
        threads.append(Thread(f"Thread {told.get('os_thread_id')}{name}{holds}", tuple(frames)))
    return tuple(threads)


def _ask(process: Process, memory: int, why: str) -> Stacks:
    if not _catches(process.pid, SIGNAL):
        return Stacks((), f"no stacks: {why}; and the process has no handler for them")
    before, others = os.fstat(memory).st_size, _threads_that_block(process.pid, SIGNAL)
    kill(process, SIGNAL)
    begin_s = time.monotonic()
    text, is_written = "", False
    while not is_written and time.monotonic() < begin_s + (_HANDLER_S if text else _BEGIN_S):
        time.sleep(0.1)
        # It writes word by word, on a busy machine with pauses between; while it runs its thread blocks the signal.
        is_over = not _threads_that_block(process.pid, SIGNAL) - others
        text = os.pread(memory, _MOST_BYTES, before).decode(errors="replace")
        is_written = is_over and bool(text)
    if not text:
        return Stacks((), f"no stacks: {why}; and its own handler did not run: it is stopped, or in the kernel")
    return Stacks(read_faulthandler(text.splitlines()), "written by its own handler")


def read_faulthandler(lines: Sequence[str]) -> tuple[Thread, ...]:
    """Threads as Python's faulthandler writes them."""
    threads: list[Thread] = []
    for line in lines:
        frame = _FAULTHANDLER_FRAME.match(line)
        if frame is None:
            if line.strip():
                threads.append(Thread(line.rstrip(), ()))
        elif threads:
            file, number, function = frame.groups()
            last = threads[-1]
            threads[-1] = Thread(last.title, (*last.frames, Frame(function, file, int(number))))
    return tuple(threads)


def _catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal; it would end of one that it has none for."""
    return _is_in_mask(f"/proc/{pid}/status", "SigCgt", number)


def _threads_that_block(pid: int, number: int) -> set[str]:
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return set()
    return {thread for thread in threads if _is_in_mask(f"/proc/{pid}/task/{thread}/status", "SigBlk", number)}


def _is_in_mask(path: str, name: str, number: int) -> bool:
    try:
        with open(path) as status:
            mask = next((line for line in status if line.startswith(f"{name}:")), f"{name}: 0")
    except OSError:
        return False
    return bool(int(mask.split()[1], 16) >> (number - 1) & 1)
