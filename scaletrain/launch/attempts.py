"""Each start of a run is an attempt, numbered from 1 by the folders in ``exit/``."""

import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scaletrain.launch.processes import Process, launchers_above, machine, this_process
from scaletrain.log import FOLDER_VARIABLE

_LOOKED_AT = 5  # newest attempts among which a process looks for its own


@dataclass(frozen=True)
class RankProcess:
    """A rank as whoever watches it from outside knows it.

    Attributes:
        run_dir: The run's folder.
        rank: Its global index.
        process: Its process.
        launch: What ``launch_of_this_process`` returned to it.
    """

    run_dir: Path
    rank: int
    process: Process
    launch: Process

    def attempt(self) -> int | None:
        """The attempt that it belongs to; None where it was not registered, and its launch has none on this machine."""
        return next((one for one in self._newest() if self._joined(one) or self._was_launched_for(one)), None)

    def joined_attempt(self) -> int | None:
        """The attempt that it was registered for, as with ``register_rank``; None where it was not yet."""
        return next((one for one in self._newest() if self._joined(one)), None)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self) | {"run_dir": str(self.run_dir)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "RankProcess":
        """Takes back what ``to_json`` gave."""
        process, launch = (Process(**content[name]) for name in ("process", "launch"))
        return cls(Path(content["run_dir"]), content["rank"], process, launch)

    def _newest(self) -> list[int]:
        return attempt_numbers(self.run_dir)[: -_LOOKED_AT - 1 : -1]

    def _joined(self, attempt: int) -> bool:
        return _is(self.run_dir / "exit" / str(attempt) / f"{self.rank}.pid", self.process)

    def _was_launched_for(self, attempt: int) -> bool:
        return _is(self.run_dir / "exit" / str(attempt) / "launch.json", self.launch)


def launch_of_this_process() -> Process:
    """The process common to all ranks of one launch on one machine: the launcher, or this process without one."""
    above = launchers_above(os.getpid())
    return above[0] if above else this_process()


def new_attempt(run_dir: Path, launch: Process) -> int:
    """Numbers a start of the run; only whoever holds the run's lease may.

    Args:
        run_dir: The run's folder.
        launch: What ``launch_of_this_process`` returned.

    Returns:
        One more than the highest attempt so far.
    """
    exit_dir = run_dir / "exit"
    exit_dir.mkdir(parents=True, exist_ok=True)
    attempt = max(_attempts(exit_dir), default=0) + 1
    (exit_dir / str(attempt)).mkdir()
    _write(exit_dir / str(attempt) / "launch.json", launch)
    return attempt


def register_rank(run_dir: Path, attempt: int, rank: int) -> None:
    """Writes ``exit/<attempt>/<rank>.pid``: which process a signal for this rank goes to.

    Args:
        run_dir: The run's folder.
        attempt: Which start of the run.
        rank: Global index of this process.
    """
    folder = run_dir / "exit" / str(attempt)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / f"{rank}.pid", this_process())


def attempt_with_logs(run_dir: Path, log_dir: Path) -> int | None:
    """The newest attempt whose ranks log into a folder of their own; None where there is none.

    Args:
        run_dir: The run's folder.
        log_dir: The folder, as ``SCALETRAIN_LOG_DIR`` named it to them.
    """
    for attempt in reversed(attempt_numbers(run_dir)[-_LOOKED_AT:]):
        try:
            content = json.loads((run_dir / "exit" / str(attempt) / "launch.json").read_text())
        except (OSError, ValueError):
            continue
        if content.get("log_dir") == str(log_dir):
            return attempt
    return None


def attempt_numbers(run_dir: Path) -> list[int]:
    """Numbers of all attempts of a run, ascending."""
    return sorted(_attempts(run_dir / "exit"))


def _attempts(exit_dir: Path) -> list[int]:
    try:
        return [int(name) for name in os.listdir(exit_dir) if name.isdigit()]
    except FileNotFoundError:
        return []


def _write(path: Path, process: Process) -> None:
    content = {
        "host": socket.gethostname(),
        "machine": machine(),
        "pid": process.pid,
        "start_ticks": process.start_ticks,
        "time_s": time.time(),
        "log_dir": os.environ.get(FOLDER_VARIABLE),
    }
    path.write_text(json.dumps(content) + "\n")


def _is(path: Path, process: Process) -> bool:
    try:
        content = json.loads(path.read_text())
        return (content["machine"], content["pid"], content["start_ticks"]) == (
            machine(),
            process.pid,
            process.start_ticks,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False
