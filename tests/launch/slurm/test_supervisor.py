"""What a supervisor does before it launches anything; all else of it is met in tests/slurm."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scaletrain.launch.slurm.journal import Journal
from scaletrain.launch.slurm.ledger import DAY_S, Failure, Ledger

# In a process of its own, since a supervisor takes the signals over.
SUPERVISE = """
import sys
from pathlib import Path
from scaletrain.launch.slurm.commands import Slurm
from scaletrain.launch.slurm.job import Job
from scaletrain.launch.slurm.settings import Settings
from scaletrain.launch.slurm.supervisor import Supervisor
nodes = tuple(sys.argv[2].split(","))
job = Job("17", "x", 0, nodes, dict.fromkeys(nodes, "n1"), 0, 1, None, ("n9",), partition_nodes=6)
settings = Settings(preflight="off", node_ledger=sys.argv[3])
sys.exit(Supervisor(job, settings, Slurm(), Path(sys.argv[1]), Path("/"), ()).run())
"""


def supervise(folder: Path, run_dir: Path, nodes: str) -> "subprocess.CompletedProcess[str]":
    (folder / "scontrol").write_text(f'#!/bin/sh\necho "$*" >>"{folder}/calls"\n')
    (folder / "scontrol").chmod(0o755)
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(folder)}
    command = [sys.executable, "-c", SUPERVISE, str(run_dir), nodes, str(folder / "ledger")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)


def test_a_run_directory_that_cannot_be_written_costs_a_requeue_and_not_the_job(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    (tmp_path / "file").touch()
    done = supervise(tmp_path, tmp_path / "file" / "run", "n1")
    assert done.returncode == 75, done.stderr
    assert "cannot be used" in done.stderr and "Traceback" not in done.stderr
    assert calls.read_text().splitlines()[-2:] == ["requeue 17", "update JobId=17 ExcNodeList=n9 StartTime=now+600"]


@pytest.mark.parametrize("was_blamed_before", [True, False])
def test_a_job_that_would_leave_out_too_many_nodes_ends_and_says_which(tmp_path: Path, was_blamed_before: bool) -> None:
    """Of the partition's six nodes it may leave out one; a node counts also where an earlier start left it out."""
    run_dir, ledger = tmp_path / "run", Ledger(tmp_path / "ledger", 7)
    run_dir.mkdir()
    for node in ("n2",) if was_blamed_before else ("n2", "n3"):
        for job_id in ("98", "99"):
            ledger.record(Failure(node, time.time(), job_id, "a lost GPU"))
    if was_blamed_before:
        Journal(run_dir, "17", 0).write("sick_node", node="n9", reason="ECC")
    recorded = sorted(ledger.folder.iterdir())
    done = supervise(tmp_path, run_dir, "n1,n2,n3,n4")
    assert done.returncode == 78, done.stderr
    assert f"delete {ledger.folder}/n2-*.json once it is mended" in done.stderr
    other = "n9: ECC" if was_blamed_before else "n3: failed 2 times in 7 days, last in job 99: a lost GPU"
    assert "n2: failed 2 times" in done.stderr and other in done.stderr and "MAX_EXCLUDED_SHARE" in done.stderr
    calls = (tmp_path / "calls").read_text()
    assert "requeue" not in calls and "DRAIN" not in calls and sorted(ledger.folder.iterdir()) == recorded


def test_a_node_that_was_left_out_long_ago_neither_counts_nor_stays_excluded(tmp_path: Path) -> None:
    run_dir, ledger, now_s = tmp_path / "run", Ledger(tmp_path / "ledger", 7), time.time()
    run_dir.mkdir()
    for job_id in ("98", "99"):
        ledger.record(Failure("n2", now_s, job_id, "a lost GPU"))
    Journal(run_dir, "17", 0).write("sick_node", node="n9", reason="ECC", time_s=now_s - 8 * DAY_S)
    done = supervise(tmp_path, run_dir, "n1,n2,n3,n4")
    assert done.returncode == 75, done.stderr
    assert "node n2 is not used: failed 2 times" in done.stderr
    assert "update JobId=17 ExcNodeList=n2 StartTime=" in (tmp_path / "calls").read_text()
    assert list(Journal(run_dir, "17", 1).blamed(now_s)) == ["n2"], "the next start counts it, which does not meet it"
