"""Has torch and deepspeed loaded, and forks ranks: each a fresh process, half a second after it was asked for.

A request is a line of JSON: script, arguments, environment, folder, output. The answer is a line with the process
number. The child runs the script as ``python script`` would.
"""

import json
import os
import runpy
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from tests.integration.runs import ENVIRONMENT, ROOT


class ForkServer:
    """The server, from outside.

    Attributes:
        mark: Stands among its arguments, and so among those of all that it forks, and nowhere else.
    """

    def __init__(self, folder: Path) -> None:
        self.mark = folder / "fork-server"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.fork_server", str(self.mark)],
            env=ENVIRONMENT | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore::FutureWarning"},
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        self._asks = threading.Lock()

    def fork(self, script: Path, arguments: list[str], environment: dict[str, str], output: Path) -> int:
        """Starts a process, and returns its number; any thread may ask."""
        request = {
            "script": str(script),
            "arguments": arguments,
            "environment": environment,
            "folder": str(output.parent),
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


def serve() -> dict[str, Any] | None:
    """Forks until nobody asks any more; returns the request in each child, and None in the server."""
    requests = b""
    while True:
        if select.select([0], [], [], 0.1)[0]:
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
            os.write(1, f"{pid}\n".encode())
        reap()


def reap() -> None:
    """Waits for children that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


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


def main() -> None:
    """Serves, and in a child runs the script."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for whoever asks
    import deepspeed.runtime.zero.muon.original_muon  # noqa: F401
    import torch  # noqa: F401

    import scaletrain.training.build  # noqa: F401

    request = serve()
    if request is None:
        os._exit(0)  # to take all that is loaded down again would take seconds
    signal.signal(signal.SIGINT, signal.default_int_handler)
    become(request)
    runpy.run_path(request["script"], run_name="__main__")


if __name__ == "__main__":
    main()
