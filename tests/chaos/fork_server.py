"""Has torch and deepspeed loaded, and forks ranks: each a fresh process, half a second after it was asked for.

A request is a line of JSON: script, arguments, environment, folder, output. The answer is a line with the process
number. The child runs the script as ``python script`` would, and its arguments are what /proc tells of it; how it ended
stands in a file beside the server's mark.
"""

import atexit
import contextlib
import ctypes
import functools
import gc
import json
import os
import runpy
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from tests.processes import ENVIRONMENT, ROOT

_ROOM = 1 << 14
"""Bytes for the arguments of what is forked; they take the place of an argument of the server."""


class ForkServer:
    """The server, from outside.

    Attributes:
        mark: Stands among its arguments, and nowhere else.
    """

    def __init__(self, folder: Path) -> None:
        self.mark = folder / "fork-server"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.fork_server", str(self.mark), " " * _ROOM],
            env=ENVIRONMENT | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore::FutureWarning"},
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        self._asks = threading.Lock()

    def start(
        self, command: list[str], environment: dict[str, str], output: Path, folder: Path | None = None
    ) -> "Forked":
        """Starts a script with its arguments, in a folder or in that of the output."""
        script, *arguments = command
        pid = self.fork(Path(script), arguments, environment, output, folder)
        return Forked(pid, Path(f"{self.mark}-{pid}"), command)

    def fork(
        self,
        script: Path,
        arguments: list[str],
        environment: dict[str, str],
        output: Path,
        folder: Path | None = None,
    ) -> int:
        """Starts a process, and returns its number; any thread may ask."""
        request = {
            "script": str(script),
            "arguments": arguments,
            "environment": environment,
            "folder": str(folder or output.parent),
            "output": str(output),
        }
        assert self._process.stdin is not None and self._process.stdout is not None
        with self._asks:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return int(self._process.stdout.readline())

    def close(self) -> None:
        """Ends the server; what it forked is ended by then."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(timeout=10)


class Forked:
    """One forked process, with what tests need of a ``subprocess.Popen``."""

    def __init__(self, pid: int, ending: Path, args: list[str]) -> None:
        self.pid = pid
        self.args = args
        self.returncode: int | None = None
        self._ending = ending

    def poll(self) -> int | None:
        """The exit code, or the negative number of the signal that ended it; None while it runs."""
        if self.returncode is None and self._ending.exists() and (told := self._ending.read_text()):
            self.returncode = int(told)
        return self.returncode

    def wait(self, timeout: float) -> int:
        """Waits for its end, no longer than ``timeout`` seconds."""
        end_s = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end_s:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        """Sends a signal, unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Kills it, unless it has ended."""
        self.send_signal(signal.SIGKILL)


@functools.cache
def shared_server() -> ForkServer:
    """The server of this test session; it ends with it."""
    folder = Path(tempfile.mkdtemp(prefix="fork-server-"))
    server = ForkServer(folder)

    def end() -> None:
        server.close()
        shutil.rmtree(folder)

    atexit.register(end)
    return server


def serve(mark: str) -> dict[str, Any] | None:
    """Forks until nobody asks any more; returns the request in each child, and None in the server."""
    requests = b""
    while True:
        if select.select([0], [], [], 0.02)[0]:
            read = os.read(0, 1 << 16)
            if not read:
                return None
            requests += read
        while b"\n" in requests:
            line, _, requests = requests.partition(b"\n")
            pid = os.fork()
            if pid == 0:
                request: dict[str, Any] = json.loads(line)
                return request
            Path(f"{mark}-{pid}").unlink(missing_ok=True)  # of an earlier process with this number
            os.write(1, f"{pid}\n".encode())
        reap(mark)


def reap(mark: str) -> None:
    """Waits for children that have ended, and tells how."""
    try:
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            Path(f"{mark}-{ended[0]}").write_text(str(os.waitstatus_to_exitcode(ended[1])))
    except ChildProcessError:
        pass


def name_this_process(words: list[str]) -> None:
    """Writes the words where the kernel finds a process's arguments."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    first, last = map(int, fields[45:47])  # arg_start and arg_end of proc(5)
    text = b"\0".join(word.encode() for word in words) + b"\0"
    ctypes.memmove(first, text[: last - first].ljust(last - first, b"\0"), last - first)


def become(request: dict[str, Any]) -> None:
    """Makes a forked child what a started process would be."""
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.argv = [request["script"], *request["arguments"]]
    sys.path[0] = os.path.dirname(os.path.realpath(request["script"]))
    name_this_process([sys.executable, *sys.argv])


def main() -> None:
    """Serves, and in a child runs the script."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for whoever asks
    import deepspeed.runtime.zero.muon.original_muon  # noqa: F401
    import torch  # noqa: F401

    import scaletrain.training.run  # noqa: F401

    gc.freeze()  # no collection of a child's shall copy what it shares with the server
    request = serve(sys.argv[1])
    if request is None:
        os._exit(0)  # to take all that is loaded down again would take seconds
    signal.signal(signal.SIGINT, signal.default_int_handler)
    become(request)
    runpy.run_path(os.path.abspath(request["script"]), run_name="__main__")


if __name__ == "__main__":
    main()
