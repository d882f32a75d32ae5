"""Readings of the GPUs that come back in time, whatever a call into the driver does.

A call into a sick driver may hang for ever, and a process that hangs in it may outlive even SIGKILL. So a process of
its own asks; where it is late it is killed, nobody waits for its end, and another one takes its place after a pause.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import scaletrain
from scaletrain.hardware.kernel_log import KMSG
from scaletrain.hardware.readings import DriverState, Reading, XidEvent, uptime_s

_CHUNK_BYTES = 1 << 16
_LONGEST_PAUSE_S = 60.0
_MOST_STUCK = 3  # processes that are killed and do not end: no more of them are made
_END_S = 1.0
_FAULTS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE)


class _Asked(NamedTuple):
    """What the driver was asked last, and about which GPU."""

    doing: str
    gpu: int | None


class Prober:
    """Asks the driver through a process of its own, from one thread.

    The kernel kills that process when the thread ends that made the first reading, or with this process.

    Args:
        kernel_log: The kernel's log, in which XIDs stand.
        pause_s: Time after a failure before another process is started; doubles with each failure, up to a minute.
    """

    def __init__(self, kernel_log: Path = KMSG, pause_s: float = 1.0) -> None:
        self._kernel_log, self._first_pause_s = kernel_log, pause_s
        self._pause_s, self._not_before_s = pause_s, 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._killed: list[subprocess.Popen[bytes]] = []
        self._rest = b""
        self._record: int | None = None

    def read(self, timeout_s: float) -> Reading:
        """Asks for everything, and waits no longer than told.

        Args:
            timeout_s: When a call counts as one that hangs; 15 is plenty for a sound driver, the start included.

        Returns:
            The reading. ``silent``: there was no answer in time, and ``detail`` and ``asked_gpu`` say to what.
            ``failing``: a fault ended the process. ``unasked``: the pause after a failure is not over, or the process
            did not come to ask.
        """
        self._killed = [one for one in self._killed if one.poll() is None]
        if len(self._killed) >= _MOST_STUCK:
            return Reading("silent", f"{len(self._killed)} processes hang in the driver and cannot be ended")
        if self._process is None:
            if time.monotonic() < self._not_before_s:
                return Reading("unasked", "a pause after a failure")
            try:
                self._process = self._start()
            except OSError as error:  # no memory, no process number: says nothing of the GPUs
                self._wait_longer()
                return Reading("unasked", f"no process can be started: {error}")
        return self._ask(time.monotonic() + timeout_s, timeout_s)

    def close(self) -> None:
        """Ends the process; waits a moment for it where it does not hang."""
        process, self._process = self._process, None
        if process is None:
            return
        _close_pipes(process)  # the end of its input is its sign to go
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_S)

    def _start(self) -> "subprocess.Popen[bytes]":
        after = "" if self._record is None else str(self._record)
        command = [sys.executable, "-m", "scaletrain.hardware.prober_process"]
        self._rest = b""
        return subprocess.Popen(
            [*command, str(os.getpid()), str(self._kernel_log), after],
            cwd=Path(scaletrain.__file__).resolve().parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )

    def _ask(self, deadline_s: float, timeout_s: float) -> Reading:
        process = self._process
        assert process is not None and process.stdin is not None
        xids: tuple[XidEvent, ...] = ()
        log: str | None = None
        asked: _Asked | None = None
        try:
            process.stdin.write(b"read\n")
            while True:
                said = self._line(process, deadline_s)
                if "doing" in said:
                    asked = _Asked(said["doing"], said["gpu"])
                elif "xids" in said:
                    xids = tuple(XidEvent(**one) for one in said["xids"])
                    self._record, log = said["record"], said["log"]
                else:
                    reading = Reading.from_json(said["reading"])
                    break
        except TimeoutError:
            self._give_up(process)
            return _failure("silent", f"no answer within {timeout_s:g} s when asked for", asked, xids, log)
        except (OSError, EOFError):
            code = self._give_up(process)
            # Whom a driver kills dies of a fault; SIGKILL is the kernel's or a person's, who say nothing of GPUs.
            by_driver = -code in _FAULTS
            how = f"the process that asks ended with {_ending(code)} at"
            return _failure("failing" if by_driver else "unasked", how, asked, xids, log)
        self._pause_s = self._first_pause_s
        return replace(reading, xids=(*xids, *reading.xids), kernel_log=log)

    def _line(self, process: "subprocess.Popen[bytes]", deadline_s: float) -> dict[str, Any]:
        assert process.stdout is not None
        while b"\n" not in self._rest:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not select.select([process.stdout], [], [], left_s)[0]:
                raise TimeoutError
            content = os.read(process.stdout.fileno(), _CHUNK_BYTES)
            if not content:
                raise EOFError
            self._rest += content
        line, _, self._rest = self._rest.partition(b"\n")
        said: dict[str, Any] = json.loads(line)
        return said

    def _give_up(self, process: "subprocess.Popen[bytes]") -> int:
        """Ends the process without waiting for it; returns its code where it had ended, else 0."""
        self._process = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.1)  # one that has closed its pipes is about to end
        code = process.poll()
        process.kill()
        _close_pipes(process)
        self._killed.append(process)
        self._wait_longer()
        return code or 0

    def _wait_longer(self) -> None:
        self._not_before_s = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)


def _failure(
    state: DriverState, what: str, asked: _Asked | None, xids: tuple[XidEvent, ...], log: str | None
) -> Reading:
    """Says nothing of the driver where it was not asked yet: a process may start late on a busy machine."""
    if asked is None:
        detail, state, gpu = f"{what} the start of the process", "unasked", None
    else:
        gpu = asked.gpu
        detail = f"{what} {asked.doing}" + ("" if gpu is None else f" of GPU {gpu}")
    return Reading(state, detail, gpu, uptime_s=uptime_s(), xids=xids, kernel_log=log)


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"code {code}"


def _close_pipes(process: "subprocess.Popen[bytes]") -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
