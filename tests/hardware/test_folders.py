"""The folders of a node, with a file server that never answers: a pipe without a writer stands in for it."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from scaletrain.hardware.bounded import BoundedCheck
from scaletrain.hardware.findings import Finding, Status
from scaletrain.hardware.folders import check_folders
from tests.processes import eventually, living


def shared(findings: list[Finding]) -> Finding:
    (found,) = [one for one in findings if one.check == "shared files"]
    return found


def test_a_token_that_shows_late_is_waited_for(tmp_path: Path) -> None:
    late = threading.Timer(0.5, (tmp_path / "token").write_text, ("new",))
    late.start()
    assert shared(check_folders(tmp_path, "new", 0)).status == "ok"
    late.join()


def test_a_folder_that_is_not_mounted_fails(tmp_path: Path) -> None:
    finding = shared(check_folders(tmp_path / "mount", "new", 0))
    assert finding.status == "fail"
    assert "mount the shared file system" in finding.detail


def test_no_folder_for_temporary_files_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("new")
    code = (
        "import sys, tempfile; from pathlib import Path; from scaletrain.hardware.folders import check_folders\n"
        "tempfile._candidate_tempdir_list = lambda: ['/no/such/folder']\n"
        "print(check_folders(Path(sys.argv[1]), 'new', 0)[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, timeout=30, check=True
    )
    assert "fail" in done.stdout and "set TMPDIR" in done.stdout


def test_a_file_server_that_never_answers_is_a_finding(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "token")
    check = BoundedCheck("folders", ["scaletrain.hardware.folders", str(tmp_path), "new", "1"], 2, "look at the server")
    expected = f"no answer within 2 s (reads {tmp_path}); look at the server"
    assert check.findings() == [Finding("folders", "fail", expected)]
    assert living(tmp_path) == {}


@pytest.mark.parametrize("status", ["fail", "unknown"])
def test_a_process_that_has_not_begun_is_of_the_status_that_is_asked_for(tmp_path: Path, status: Status) -> None:
    """None begins in a microsecond: the launcher leaves such a node out, the check of a node drains none."""
    command = ["scaletrain.hardware.folders", str(tmp_path), "new", "1"]
    (found,) = BoundedCheck("folders", command, 1e-6, "look", status).findings()
    assert found == Finding("folders", status, "no answer within 1e-06 s, and it has not begun; look")
    assert living(tmp_path) == {}


def test_an_answer_in_time_counts_however_late_it_is_looked_at(tmp_path: Path) -> None:
    """The driver is asked meanwhile, for longer than the folders have."""
    (tmp_path / "token").write_text("new")
    check = BoundedCheck("folders", ["scaletrain.hardware.folders", str(tmp_path), "new", "0"], 0.01, "look")
    (pid,) = living(tmp_path)
    unreaped = os.WEXITED | os.WNOWAIT | os.WNOHANG
    eventually(lambda: os.waitid(os.P_PID, pid, unreaped), 30, "it does not end")
    assert {one.check for one in check.findings()} == {"disk", "shm", "shared files"}


def test_nothing_outlives_the_check(tmp_path: Path) -> None:
    """Killed while it waits, it leaves no process that waits on."""
    os.mkfifo(tmp_path / "token")
    expected = json.dumps({"gpus": 0, "shared_dir": str(tmp_path), "token": "new"})
    check = subprocess.Popen([sys.executable, "-m", "scaletrain.hardware.node_check", expected])
    eventually(lambda: any("hardware.folders" in one for one in living(tmp_path).values()), 30, "nothing was started")
    check.send_signal(signal.SIGKILL)
    check.wait(timeout=30)
    eventually(lambda: not living(tmp_path), 10, lambda: f"it lives on: {living(tmp_path)}")
