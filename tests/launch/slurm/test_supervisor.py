"""What a supervisor does where not even its own records can be written; all else of it is met in tests/slurm."""

import os
import subprocess
import sys
from pathlib import Path

# In a process of its own, since a supervisor takes the signals over.
SUPERVISE = """
import sys
from pathlib import Path
from scaletrain.launch.slurm.commands import Slurm
from scaletrain.launch.slurm.job import Job
from scaletrain.launch.slurm.settings import Settings
from scaletrain.launch.slurm.supervisor import Supervisor
job = Job("17", "x", 0, ("n1",), {"n1": "n1"}, 0, 1, None, ("n9",))
sys.exit(Supervisor(job, Settings(preflight="off"), Slurm(), Path(sys.argv[1]), Path("/"), ()).run())
"""


def test_a_run_directory_that_cannot_be_written_costs_a_requeue_and_not_the_job(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$*" >>"{calls}"\n')
    (tmp_path / "scontrol").chmod(0o755)
    (tmp_path / "file").touch()
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    command = [sys.executable, "-c", SUPERVISE, str(tmp_path / "file" / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
    assert done.returncode == 75, done.stderr
    assert "cannot be used" in done.stderr and "Traceback" not in done.stderr
    assert calls.read_text().splitlines()[-2:] == ["requeue 17", "update JobId=17 ExcNodeList=n9 StartTime=now+600"]
