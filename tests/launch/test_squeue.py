"""What Slurm's queue says, from commands that answer as it does, wrongly, late or not at all."""

import time
from datetime import datetime
from pathlib import Path

import pytest

from scaletrain.launch.squeue import Queued, ask_squeue

START_S = datetime(2026, 11, 25, 9, 0, 0).timestamp()


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A squeue that stands alone on the PATH."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path / "squeue"


def answer(command: Path, script: str) -> None:
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)


def test_a_job_that_waits_and_one_that_runs(command: Path) -> None:
    answer(command, "echo '77|PENDING|BeginTime||1-02:03:04|2026-11-25T09:00:00'")
    assert ask_squeue("77") == Queued("PENDING", "BeginTime", "", 93784.0, START_S)
    answer(command, "echo '77|RUNNING|None|n[1-4]|59:01|2026-11-25T09:00:00'")
    assert ask_squeue("77") == Queued("RUNNING", "", "n[1-4]", 3541.0, START_S)
    answer(command, "echo '77|PENDING|Resources||UNLIMITED|N/A'")
    assert ask_squeue("77") == Queued("PENDING", "Resources", "", None, None)


def test_it_asks_for_the_job_and_takes_its_own_task_of_an_array(command: Path, tmp_path: Path) -> None:
    answer(
        command, f"echo \"$*\" > {tmp_path}/asked; echo '78|PENDING|None||1:00|N/A'; echo '77|RUNNING|None|n1|1:00|N/A'"
    )
    found = ask_squeue("77")
    assert found is not None and found.nodes == "n1"
    assert (tmp_path / "asked").read_text().startswith("-h -j 77 -o ")


@pytest.mark.parametrize(
    "script", ["exit 1", "echo no such job", "echo '78|RUNNING|None|n1|1:00|N/A'", "echo '77|RUNNING'"]
)
def test_what_is_no_answer_is_left_out(command: Path, script: str) -> None:
    answer(command, script)
    assert ask_squeue("77") is None


def test_it_waits_no_longer_than_it_may(command: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(command, "exec sleep 20")
    begun_s = time.monotonic()
    assert ask_squeue("77", answer_s=0.3) is None
    assert time.monotonic() - begun_s < 10
    monkeypatch.setenv("PATH", str(command.parent / "nowhere"))
    assert ask_squeue("77") is None
