"""Reads the output of a shell command, for ``pipe:`` URLs."""

import os
import select
import signal
import subprocess
from collections.abc import Generator

from scaletrain.storage.failures import StalledError, TransferError

_PART = 2**20


def output_of(command: str, stall_s: float) -> Generator[bytes, None, None]:
    """Runs a command in a shell and yields what it writes.

    What the command writes to its standard error is dropped: it may repeat a credential that the command holds.

    Args:
        command: For ``/bin/sh``.
        stall_s: Longest wait for the next byte, and for the end after the last one.

    Yields:
        Bytes, as they come. Who stops early ends the command.

    Raises:
        StalledError: Nothing came in time. The command and its children are killed.
        TransferError: It ended with another status than 0.
    """
    process = subprocess.Popen(
        command,
        shell=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a group of its own, that can be killed with all its children
    )
    assert process.stdout is not None
    try:
        waiting = select.poll()
        waiting.register(process.stdout, select.POLLIN)
        while True:
            if not waiting.poll(stall_s * 1000):
                raise StalledError(f"the command wrote nothing for {stall_s:g} s")
            part = os.read(process.stdout.fileno(), _PART)
            if not part:
                break
            yield part
        try:
            status = process.wait(timeout=stall_s)
        except subprocess.TimeoutExpired:
            raise StalledError(f"the command closed its output, but did not end within {stall_s:g} s") from None
        if status:
            raise TransferError(f"the command ended with status {status}; run it by hand to see what it says")
    finally:
        process.stdout.close()
        if process.returncode is None:  # until it is waited for, its number belongs to nobody else
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
