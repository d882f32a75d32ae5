"""One run directory has one living owner, through the real command; a dead one is recognised, nothing outlives it."""

import json
import os
import signal
import socket
import time
from pathlib import Path

from scaletrain.launch.heartbeat import STALE_S, lease_path, read_lease
from tests.integration.runs import NewRun, TinyRun
from tests.processes import eventually, living

FOREVER = ("--train.max_steps", 1_000_000, "--checkpoint.every_steps", 0)


def nothing_lives(run: TinyRun, within_s: float = 45) -> None:
    eventually(lambda: not living(run.folder), within_s, lambda: f"all processes ended: {living(run.folder)}")


def test_of_two_starts_at_once_one_trains_and_a_killed_one_is_followed_at_once(new_run: NewRun) -> None:
    run = new_run("twice")
    both = run.start_ranks(1, *FOREVER) + run.start_ranks(1, *FOREVER, name="other")
    refused = eventually(lambda: [one for one in both if one.poll() is not None], 60, "one is refused")
    (owner,) = [one for one in both if one not in refused]
    run.wait_for_step(2, attempt=1)
    assert [one.returncode for one in refused] == [2]
    said = run.output_of("rank-0" if refused[0] is both[0] else "other-0").read_text()
    assert "in use since" in said and f"by process {owner.pid} on {socket.gethostname()}" in said
    assert "Traceback" not in said

    # Killed, it gives nothing back; its workers and its keeper end, and the next start need not wait.
    owner.kill()
    owner.wait(timeout=10)
    assert read_lease(run.run_dir).pid == owner.pid  # type: ignore[union-attr]
    start_s = time.monotonic()
    (again,) = run.start_ranks(1, *FOREVER)
    eventually(lambda: (lease := read_lease(run.run_dir)) and lease.pid == again.pid, 30, "the lease is taken over")
    assert time.monotonic() - start_s < 30 < STALE_S
    # Everything at once, as a node that is reset: nobody is left to write a verdict, and the lease still binds nobody.
    for pid in living(run.folder):
        os.kill(pid, signal.SIGKILL)
    again.wait(timeout=10)
    nothing_lives(run)
    assert run.verdicts(1) == ["crash"] and run.verdicts(2) == []
    (last,) = run.start_ranks(1, *FOREVER)
    eventually(lambda: (lease := read_lease(run.run_dir)) and lease.pid == last.pid, 30, "the lease is taken over")
    last.kill()


def test_an_owner_on_another_host_is_respected_until_its_heart_has_stopped(new_run: NewRun) -> None:
    run = new_run("elsewhere")
    run.run_dir.mkdir()
    lease = {"host": "node17", "machine": "another-boot/pid:[1]", "pid": 4711, "start_ticks": 1, "job_id": None}
    lease_path(run.run_dir).write_text(json.dumps({**lease, "launchers": [], "taken_s": time.time()}))
    refused = run.alone("--train.max_steps", 1)
    assert refused.returncode == 2 and "by process 4711 on node17" in refused.stdout
    stopped_s = time.time() - STALE_S - 1
    os.utime(lease_path(run.run_dir), (stopped_s, stopped_s))
    (taken,) = run.start_ranks(1, *FOREVER)
    eventually(lambda: (lease := read_lease(run.run_dir)) and lease.pid == taken.pid, 30, "the lease is taken over")
    taken.kill()


def test_nothing_of_a_killed_launch_lives_on_to_hold_the_run(new_run: NewRun) -> None:
    """Kills the launcher while its ranks start, then rank 0 below a living launcher, in the middle of the training."""
    run = new_run("killed")
    command = run.start_deepspeed(*FOREVER)
    eventually((run.run_dir / "exit" / "1" / "launch.json").exists, 60, "rank 0 has the lease and its attempt")
    os.kill(parent_of(read_lease(run.run_dir).pid), signal.SIGKILL)  # type: ignore[union-attr]
    nothing_lives(run)
    command.wait(timeout=10)
    command = run.start_deepspeed(*FOREVER)
    run.wait_for_step(2, attempt=2, within_s=90)
    os.kill(run.pid_of(2, rank=0), signal.SIGKILL)
    nothing_lives(run)
    command.wait(timeout=10)
    assert run.verdicts(2) == ["crash", "crash"]


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
