"""Takes and gives back the lease of a run directory: one living owner at a time, a dead one is recognised."""

import os
import socket
import time
from pathlib import Path

from filelock import FileLock, Timeout

from scaletrain.errors import ConfigError
from scaletrain.files import replace_text
from scaletrain.launch.heartbeat import REFRESH_S, STALE_S, Lease, lease_path, read_lease
from scaletrain.launch.processes import Process, launchers_above, machine, this_process

_LOCK_WAIT_S = 30.0  # the lock is held for moments; who waits longer has met a broken file system
_ENDING_WAIT_S = 45.0  # more than the grace that a keeper gives a rank without a launcher


def take_lease(run_dir: Path) -> Lease | None:
    """Makes this process the owner of a run directory.

    An owner that is about to end, because its launcher has ended, or because it is the former life of the
    same Slurm job, is waited for.

    Args:
        run_dir: An existing folder.

    Returns:
        The lease of an owner that died without giving it back; None where there was none.

    Raises:
        ConfigError: Somebody alive owns it; names host and process.
        OSError: The folder cannot be written.
    """
    own = _own_lease()
    waiting_since = time.monotonic()
    while True:
        try:
            with FileLock(run_dir / ".lease.lock", timeout=_LOCK_WAIT_S):
                holder = read_lease(run_dir)
                if holder is None or not is_alive(run_dir, holder):
                    replace_text(lease_path(run_dir), own.to_json())
                    return holder
        except Timeout:
            raise ConfigError(
                f"{run_dir / '.lease.lock'} has been locked for {_LOCK_WAIT_S:.0f} s, though it is only held for "
                "moments; check the file system, or give another --run_dir"
            ) from None
        if time.monotonic() - waiting_since > _patience_s(holder, own):
            raise ConfigError(_refusal(run_dir, holder))
        time.sleep(0.25)


def release_lease(run_dir: Path) -> None:
    """Gives the lease back, if this process owns it."""
    me = this_process()
    with FileLock(run_dir / ".lease.lock", timeout=_LOCK_WAIT_S):
        lease = read_lease(run_dir)
        if lease and (lease.machine, lease.pid, lease.start_ticks) == (machine(), me.pid, me.start_ticks):
            lease_path(run_dir).unlink(missing_ok=True)


def is_alive(run_dir: Path, lease: Lease) -> bool:
    """Whether the owner of a lease still lives.

    Where its process can be looked up the answer is exact; a machine of the same name that was started anew has
    lost it; of another machine the age of its heartbeat decides.

    Args:
        run_dir: The run's folder.
        lease: The lease found there.

    Returns:
        Whether it must be respected.
    """
    here = machine()
    if lease.machine == here:
        return Process(lease.pid, lease.start_ticks).is_alive()
    if lease.host == socket.gethostname() and _boot(lease.machine) != _boot(here):
        return False
    return _heartbeat_age_s(run_dir) < STALE_S


def _own_lease() -> Lease:
    me = this_process()
    return Lease(
        host=socket.gethostname(),
        machine=machine(),
        pid=me.pid,
        start_ticks=me.start_ticks,
        job_id=os.environ.get("SLURM_JOB_ID"),
        launchers=tuple((above.pid, above.start_ticks) for above in launchers_above(me.pid)),
        taken_s=time.time(),
    )


def _patience_s(holder: Lease, own: Lease) -> float:
    if holder.machine == own.machine:
        ending = any(not Process(pid, start).is_alive() for pid, start in holder.launchers)
        return _ENDING_WAIT_S if ending else 0.0
    # A requeued job was ended by Slurm on its old node before it started here: its heartbeat will go stale.
    return STALE_S + REFRESH_S if holder.job_id is not None and holder.job_id == own.job_id else 0.0


def _heartbeat_age_s(run_dir: Path) -> float:
    """Age by the file system's own clock: two machines' clocks may differ by more than a heartbeat."""
    probe = run_dir / f".now.{socket.gethostname()}.{os.getpid()}"
    probe.touch()
    try:
        return probe.stat().st_mtime - lease_path(run_dir).stat().st_mtime
    except FileNotFoundError:
        return STALE_S
    finally:
        probe.unlink(missing_ok=True)


def _refusal(run_dir: Path, holder: Lease) -> str:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder.taken_s))
    job = f", job {holder.job_id}" if holder.job_id else ""
    return (
        f"run directory {run_dir} is in use since {since} by process {holder.pid} on {holder.host}{job}: one run at a "
        f"time may write there; wait for it, stop it there with kill -TERM {holder.pid}, or give another --run_dir"
    )


def _boot(machine_name: str) -> str:
    return machine_name.partition("/")[0]
