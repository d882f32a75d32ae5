"""The lease file of a run directory: who owns the run, and that they live.

Its content says who took it, its modification time is the heartbeat.
"""

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from scaletrain.launch.processes import Process, machine

REFRESH_S = 10.0
STALE_S = 120.0
"""Age of a heartbeat from which an owner on another machine counts as dead: many missed refreshes, since network
file systems show changes late."""


@dataclass(frozen=True)
class Lease:
    """Who owns a run directory.

    Attributes:
        host: Name of the machine, for people.
        machine: What ``processes.machine`` says there.
        pid: Number of the owning process.
        start_ticks: When it started, as in ``processes.Process``.
        job_id: Slurm's job; None outside of Slurm.
        launchers: (pid, start_ticks) of the launchers above it, which it does not outlive for long.
        taken_s: Unix time at which the lease was taken.
    """

    host: str
    machine: str
    pid: int
    start_ticks: int
    job_id: str | None
    launchers: tuple[tuple[int, int], ...]
    taken_s: float

    def to_json(self) -> str:
        """The content of the lease's file."""
        return json.dumps(asdict(self)) + "\n"


def lease_path(run_dir: Path) -> Path:
    """File of the lease in a run directory."""
    return run_dir / "lease.json"


def read_lease(run_dir: Path) -> Lease | None:
    """Reads the lease; None where there is none, or none that can be read."""
    try:
        content = json.loads(lease_path(run_dir).read_text())
        launchers = tuple((int(pid), int(start)) for pid, start in content.pop("launchers"))
        return Lease(**content, launchers=launchers)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def refresh_lease(run_dir: Path, owner: Process) -> None:
    """Renews the heartbeat, if the lease belongs to this process of this machine."""
    lease = read_lease(run_dir)
    if lease and (lease.machine, lease.pid, lease.start_ticks) == (machine(), owner.pid, owner.start_ticks):
        with suppress(OSError):  # an unreachable disk: the next refresh may succeed
            os.utime(lease_path(run_dir))
