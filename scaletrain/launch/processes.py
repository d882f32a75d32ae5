"""What Linux tells about processes: who is alive, who started whom, who descends from whom."""

import fcntl
import os
import signal
import socket
import struct
import time
from dataclasses import dataclass
from pathlib import Path

from scaletrain.lifetime import end_with

_LAUNCHER_SCRIPTS = ("deepspeed", "deepspeed.py", "ds", "torchrun")
_LAUNCHER_MODULES = ("deepspeed.launcher.", "deepspeed.launcher", "torch.distributed.run", "torch.distributed.launch")
_MOST_LAUNCHERS = 4
_PIDFD_GET_INFO = 0xC040FF0B  # these three from linux/pidfd.h: _IOWR(0xFF, 11, struct pidfd_info), version 0 of it
_PIDFD_INFO = struct.Struct("Q52xi")
_PIDFD_INFO_EXIT = 1 << 3


@dataclass(frozen=True)
class Process:
    """One process for good: a number alone is given to another process after the first has ended.

    Attributes:
        pid: Its number.
        start_ticks: When it started, in clock ticks since the machine did.
    """

    pid: int
    start_ticks: int

    def is_alive(self) -> bool:
        """Whether it still runs; a process that has ended but was not waited for does not."""
        fields = _stat(self.pid)
        return fields is not None and int(fields[19]) == self.start_ticks and fields[0] not in ("Z", "X")


def process_of(pid: int) -> Process | None:
    """The process that has this number now; None where there is none."""
    fields = _stat(pid)
    return None if fields is None else Process(pid, int(fields[19]))


def this_process() -> Process:
    """The process that calls."""
    found = process_of(os.getpid())
    if found is None:
        raise RuntimeError("/proc is not mounted; scaletrain needs Linux with /proc")
    return found


def own_start_s() -> float:
    """When this process started, as Unix time; the clock that counts from the machine's start tells it to 10 ms."""
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - this_process().start_ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - age_s


def machine() -> str:
    """Names this start of this machine, and the set of process numbers that this process sees.

    Two processes with the same text can look each other up by number; the host's name does not promise that
    (containers), nor does it survive a restart of the machine.
    """
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot_id}/{os.readlink('/proc/self/ns/pid')}"


class ProcessEnd:
    """How a process ends, for one that is not its parent; it has to live when this is made.

    The kernel keeps that for the parent, and drops it once the parent has asked. From Linux 6.15 on whoever holds a
    descriptor of the process is told afterwards (ioctl_pidfd(2), PIDFD_GET_INFO).
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        try:
            self._descriptor: int | None = os.pidfd_open(process.pid)
        except ProcessLookupError:
            self._descriptor = None

    def signal_or_code(self) -> str | None:
        """As "signal 9 (SIGKILL)" or "exit code 1"; None while it runs, and where it is too late to know."""
        status = self._kept_for_parent()
        if status is None:
            status = self._told_afterwards()
        if status is None:
            return None
        number = os.WTERMSIG(status)
        if number == 0:
            return f"exit code {os.WEXITSTATUS(status)}"
        return f"signal {number} ({signal.Signals(number).name})"

    def _kept_for_parent(self) -> int | None:
        fields = _stat(self._process.pid)
        if fields is None or int(fields[19]) != self._process.start_ticks or fields[0] != "Z" or len(fields) < 50:
            return None
        return int(fields[49])

    def _told_afterwards(self) -> int | None:
        if self._descriptor is None:
            return None
        info = _PIDFD_INFO.pack(_PIDFD_INFO_EXIT, 0)
        try:
            info = fcntl.ioctl(self._descriptor, _PIDFD_GET_INFO, info)
        except OSError:  # an older kernel
            return None
        mask, status = _PIDFD_INFO.unpack(info)
        return status if mask & _PIDFD_INFO_EXIT else None


def launchers_above(pid: int) -> list[Process]:
    """The launcher processes (of deepspeed or torchrun) above a process, the nearest first.

    Args:
        pid: The process to start from, itself not among them.

    Returns:
        Direct ancestors as long as each is a launcher.
    """
    found: list[Process] = []
    fields = _stat(pid)
    while fields is not None and len(found) < _MOST_LAUNCHERS:
        parent = process_of(int(fields[1]))
        if parent is None or not _is_launcher(parent.pid):
            break
        found.append(parent)
        fields = _stat(parent.pid)
    return found


def descendants(pid: int) -> list[Process]:
    """All processes below a process, as long as their parents live."""
    found: list[Process] = []
    waiting = [pid]
    while waiting:
        for child in _children(waiting.pop()):
            process = process_of(child)
            if process is not None:
                found.append(process)
                waiting.append(child)
    return found


def kill(process: Process, number: int) -> None:
    """Sends a signal, if the process is still the one that is meant."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:
        return
    try:
        if process.is_alive():
            signal.pidfd_send_signal(descriptor, number)
    except OSError:
        pass  # it ended in this moment, or it belongs to somebody else by now
    finally:
        os.close(descriptor)


def free_port() -> int:
    """A TCP port of the loopback that nobody listens at now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def die_with_launcher() -> None:
    """Lets the kernel kill this process as soon as the launcher that started it is gone.

    Without a launcher nothing is done: a run started with nohup outlives its shell. Processes forked later
    do not inherit this.
    """
    parent = os.getppid()
    if not _is_launcher(parent):
        return
    end_with(parent)


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat after the name: state, parent, ...; None where there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (OSError, ValueError):
        return None
    return text.rpartition(")")[2].split()  # the name, in parentheses, may hold spaces and parentheses


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            found += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())
    except OSError:
        pass  # a thread or the process ended while it was looked at
    return found


def _is_launcher(pid: int) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return False
    # "python -u -m MODULE ..." or "python SCRIPT ..."; a script with a #! line has the interpreter in front too.
    position = 1 if Path(words[0]).name.startswith("python") else 0
    while position < len(words) and words[position].startswith("-") and words[position] != "-m":
        position += 1
    if position >= len(words):
        return False
    if words[position] == "-m":
        module = words[position + 1] if position + 1 < len(words) else ""
        return module.startswith(_LAUNCHER_MODULES)
    return Path(words[position]).name in _LAUNCHER_SCRIPTS
