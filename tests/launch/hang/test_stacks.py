"""Stacks of processes that do not answer, by both ways; and the dumps of torch's flight recorder."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from scaletrain.launch.hang.flight_recorder import clear_dumps, take_dump
from scaletrain.launch.hang.stacks import SIGNAL, Frame, Thread, read_faulthandler, take_stacks
from scaletrain.launch.hang.start import prepare_dumps
from scaletrain.launch.processes import Process, process_of
from tests.processes import eventually

HELD = """
import ctypes, os, sys, threading, time
from scaletrain.launch.hang.stacks import offer_stacks
memory = offer_stacks()

def wait_for_work():
    time.sleep(900)

threading.Thread(target=wait_for_work, daemon=True).start()

def never_gives_the_lock_back():
    library = ctypes.PyDLL(None)
    print(memory, flush=True)
    library.pause()

never_gives_the_lock_back()
"""
PY_SPY = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy") or ""


@contextmanager
def held() -> Iterator[tuple[Process, int]]:
    """A process with the interpreter's lock in C code, and the memory that it offers."""
    with subprocess.Popen([sys.executable, "-c", HELD], stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None
            number = int(running.stdout.readline())
            memory = os.open(f"/proc/{running.pid}/fd/{number}", os.O_RDONLY)
            process = process_of(running.pid)
            assert process is not None
            yield process, memory
            os.close(memory)
        finally:
            running.kill()


@pytest.mark.parametrize("py_spy", [PY_SPY, "", "/no/such/program"], ids=["py-spy", "none", "broken"])
def test_a_process_that_never_gives_the_lock_back(py_spy: str) -> None:
    with held() as (process, memory):
        stacks = take_stacks(process, py_spy, memory)
        calls = [[frame.function for frame in thread.frames] for thread in stacks.threads]
        assert any(frames[0] == "never_gives_the_lock_back" for frames in calls), str(stacks)
        assert any("wait_for_work" in frames for frames in calls), str(stacks)
        assert stacks.source == ("read by py-spy" if py_spy == PY_SPY else "written by its own handler")


def test_a_stopped_process_is_read_and_cannot_answer() -> None:
    with held() as (process, memory):
        os.kill(process.pid, signal.SIGSTOP)
        assert "never_gives_the_lock_back" in str(take_stacks(process, PY_SPY, memory))
        told = take_stacks(process, "", memory)
        assert told.threads == () and "it is stopped, or in the kernel" in told.source


def test_a_process_without_a_handler_is_left_alone() -> None:
    with subprocess.Popen(["sleep", "900"]) as running:
        process = process_of(running.pid)
        assert process is not None
        eventually(lambda: Path(f"/proc/{running.pid}/comm").read_text().strip() == "sleep", 10, "it runs")
        assert "no handler" in take_stacks(process, "", 0).source
        assert process.is_alive() and SIGNAL > signal.SIGRTMIN
        running.kill()


def test_a_collective_is_seen_in_the_innermost_calls_only() -> None:
    inner = '  File "/x/torch/distributed/distributed_c10d.py", line 3018 in all_reduce'
    outer = [f'  File "/x/model.py", line {line} in forward' for line in range(20)]
    head = "Current thread 0x00007f (most recent call first):"
    waits, called = read_faulthandler([head, inner, *outer, "", head, *outer, inner])
    assert waits.collective == "all_reduce" and called.collective == ""
    assert waits.frames[1].function == "forward" and waits.frames[1].line == 0


def test_the_gathering_of_zero_3_is_a_collective() -> None:
    """It waits in C++, called from DeepSpeed's own code: so says py-spy of a real training, in these two ways."""
    zero = "/x/deepspeed/runtime/zero/"
    waits = [
        Frame("instrument_w_nvtx.<locals>.wrapped_fn", "/x/deepspeed/utils/nvtx.py", 33),
        Frame("AllGatherCoalescedHandle.wait", f"{zero}partition_parameters.py", 187),
        Frame("Module.forward", "/x/model.py", 5),
    ]
    gathers = Frame("Init._allgather_params_coalesced", f"{zero}partition_parameters.py", 2112)
    assert Thread("", tuple(waits)).collective == "AllGatherCoalescedHandle.wait"
    assert Thread("", (gathers, *waits)).collective == "Init._allgather_params_coalesced"
    held = Frame("strike", "/x/held.py", 7)
    copies = Frame("Init._partition_param", f"{zero}partition_parameters.py", 1800)
    assert [Thread("", (first, gathers)).collective for first in (held, copies)] == ["", ""]


def test_a_dump_is_asked_for_through_the_pipe(tmp_path: Path) -> None:
    """The other end stands for the thread of torch that reads the pipe: the settings are those that it goes by."""
    environment = {"TORCH_FR_BUFFER_SIZE": "10"}
    folder = prepare_dumps(environment)
    try:
        assert environment["TORCH_FR_BUFFER_SIZE"] == "10" and int(environment["TORCH_NCCL_TRACE_BUFFER_SIZE"]) > 0
        assert "no pipe" in take_dump(folder, 3, tmp_path / "collectives")
        pipe = Path(environment["TORCH_NCCL_DEBUG_INFO_PIPE_FILE"] + "3.pipe")
        os.mkfifo(pipe)
        reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)

        def dump() -> None:
            eventually(lambda: bool(_read(reading)), 20, "it is asked")
            Path(environment["TORCH_FR_DUMP_TEMP_FILE"] + "3").write_bytes(b"the last collectives")

        torch = threading.Thread(target=dump)
        torch.start()
        assert take_dump(folder, 3, tmp_path / "collectives") == ""
        torch.join()
        os.close(reading)
        assert (tmp_path / "collectives" / "collectives_3").read_bytes() == b"the last collectives"
    finally:
        clear_dumps(folder)
    assert not Path(folder).exists()
    assert prepare_dumps({"TORCH_NCCL_DEBUG_INFO_PIPE_FILE": "/mine/"}) == "", "a user's own settings stand"


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 10)
    except BlockingIOError:
        return b""
