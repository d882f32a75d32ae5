"""Starts the ranks of one attempt: forked, by the plain command, or by DeepSpeed's launcher."""

import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import psutil

from scaletrain.launch.processes import Process, kill, process_of
from tests.chaos.fork_server import ForkServer
from tests.integration.runs import ENVIRONMENT, TRAIN, TinyRun, free_port

Starter = Literal["forked", "command", "deepspeed"]

FAULTY_RANK = Path(__file__).parent / "faulty_rank.py"


@dataclass(frozen=True)
class Setting:
    """How an attempt is started.

    Attributes:
        stage: Of ZeRO.
        ranks: Their number.
        precision: fp32 or bf16.
        dropout: Share of activations.
        max_steps: Where the run is complete.
        workers: DataLoader processes of each rank.
        every_steps: Interval of saves.
        local_every_steps: Interval of saves to a folder of the node; 0 for none.
        background: Whether saves go on beside the training.
    """

    stage: int = 2
    ranks: int = 2
    precision: str = "fp32"
    dropout: float = 0.1
    max_steps: int = 16
    workers: int = 0
    every_steps: int = 4
    local_every_steps: int = 0
    background: bool = True

    def flags(self, local_dir: Path) -> list[str]:
        """For the command line; ``local_dir`` stands for the node's own disk."""
        values: dict[str, object] = {
            "deepspeed": f"configs/ds/zero{self.stage}.json",
            "train.precision": self.precision,
            "train.max_steps": self.max_steps,
            "model.dropout": self.dropout,
            "data.num_workers": self.workers,
            "checkpoint.every_steps": self.every_steps,
            "checkpoint.background": str(self.background).lower(),
            "checkpoint.keep_last": 3,
        }
        if self.local_every_steps:
            values |= {"checkpoint.local_dir": local_dir, "checkpoint.local_every_steps": self.local_every_steps}
        return [text for name, value in values.items() for text in (f"--{name}", str(value))]

    def arithmetic(self) -> "Setting":
        """The setting whose numbers this one must have: saves and workers change none."""
        return replace(self, workers=0, every_steps=self.max_steps, local_every_steps=0, background=True)

    def __str__(self) -> str:
        local = f" (node {self.local_every_steps})" if self.local_every_steps else ""
        manner = "beside" if self.background else "between"
        return f"ZeRO {self.stage}, {self.ranks} x {self.precision}, saves {manner} every {self.every_steps}{local}"


@dataclass
class Attempt:
    """Processes of one start.

    Attributes:
        started: Those that were started directly: the ranks, or the launcher.
        has_launcher: Whether the ranks are children of a launcher.
    """

    started: list[Process]
    has_launcher: bool = False
    begin_s: float = field(default_factory=time.monotonic)
    _popen: "list[subprocess.Popen[bytes]]" = field(default_factory=list)
    _seen: dict[int, Process] = field(default_factory=dict)

    def ranks(self) -> dict[int, Process]:
        """The ranks that were seen so far, by rank, alive or not."""
        if not self.has_launcher:
            return dict(enumerate(self.started))
        for process in psutil.process_iter():
            try:
                parent = process.parent()
                if parent is None or "deepspeed.launcher.launch" not in parent.cmdline():
                    continue
                rank, found = process.environ().get("RANK"), process_of(process.pid)
                if rank is not None and found is not None and self._is_above(process):
                    self._seen.setdefault(int(rank), found)
            except psutil.Error:
                continue  # it ended while it was looked at
        return dict(self._seen)

    def _is_above(self, process: psutil.Process) -> bool:
        return any(parent.pid == self.started[0].pid for parent in process.parents())

    def is_alive(self) -> bool:
        """Whether any of it lives."""
        for popen in self._popen:
            popen.poll()
        return any(process.is_alive() for process in [*self.started, *self._seen.values()])

    def is_partly_dead(self) -> bool:
        """Whether a rank has ended; a launcher ends its other ranks by itself."""
        return not self.has_launcher and any(not process.is_alive() for process in self.started)

    def kill(self) -> None:
        """Kills all of it."""
        for process in [*self.ranks().values(), *self.started]:
            kill(process, signal.SIGKILL)
        for popen in self._popen:
            popen.wait(timeout=10)


def node_of(run: TinyRun) -> Path:
    """What stands for the node's own disk."""
    return run.folder / "node"


def start(run: TinyRun, setting: Setting, starter: Starter, server: ForkServer, number: int, nan: str = "") -> Attempt:
    """Starts an attempt, and returns at once.

    Args:
        run: Where it trains.
        setting: How.
        starter: Who starts the ranks.
        server: Forks ranks, where it is asked to.
        number: Of the attempt, for the names of the output's files.
        nan: For ``faulty_rank.py``; an empty one runs the project's own script.

    Returns:
        Its processes.
    """
    script = FAULTY_RANK if nan else TRAIN
    arguments = ["--config", str(run.config), *setting.flags(node_of(run))]
    common = ENVIRONMENT | {"CHAOS_NAN": nan, "PYTHONPATH": str(TRAIN.parents[1])}
    port = str(free_port())
    if starter == "deepspeed":
        launcher = shutil.which("deepspeed", path=str(Path(sys.executable).parent)) or "deepspeed"
        options = ["--num_gpus", str(setting.ranks), "--master_port", port]
        popen = _popen([launcher, *options, str(script), *arguments], common, run.folder / f"launch-{number}.txt")
        return Attempt(_processes([popen.pid]), has_launcher=True, _popen=[popen])
    pids, popens = [], []
    for rank in range(setting.ranks):
        environment = common | {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(setting.ranks),
            "LOCAL_WORLD_SIZE": str(setting.ranks),
        }
        output = run.folder / f"rank-{rank}-{number}.txt"
        if starter == "forked":
            pids.append(server.fork(script, arguments, environment, output))
        else:
            popens.append(_popen([sys.executable, str(script), *arguments], environment, output))
            pids.append(popens[-1].pid)
    return Attempt(_processes(pids), _popen=popens)


def _popen(command: list[str], environment: dict[str, str], output: Path) -> "subprocess.Popen[bytes]":
    with output.open("w") as file:
        return subprocess.Popen(
            command, env=environment, cwd=output.parent, stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )


def _processes(pids: list[int]) -> list[Process]:
    return [process for pid in pids if (process := process_of(pid)) is not None]
