"""What a job's launcher relies on: a log for each rank, signals that get through, and collectives with a limit."""

import os
import signal
import sys
import time

import pytest

from scaletrain.launch.verdicts import read_verdicts
from tests.integration.runs import NewRun
from tests.processes import eventually


@pytest.mark.thorough  # a unit test does the same with one process
def test_each_rank_has_its_log_and_the_first_is_seen_in_the_jobs(new_run: NewRun) -> None:
    run = new_run("logs")
    folder = run.folder / "logs of ranks"
    ranks = run.start_ranks(2, "--train.max_steps", 2, environment={"SCALETRAIN_LOG_DIR": str(folder)})
    assert [rank.wait(timeout=90) for rank in ranks] == [0, 0]
    first = (folder / "rank-00000.log").read_text()
    assert "step 2/2" in first and "step 2/2" in run.output_of("rank-0").read_text()
    assert (folder / "rank-00001.log").exists()
    assert run.output_of("rank-1").read_text() == ""


@pytest.mark.thorough
def test_a_folder_that_cannot_be_written_ends_nothing(new_run: NewRun) -> None:
    run = new_run("nologs")
    (run.folder / "file").touch()
    result = run.alone("--train.max_steps", 1, environment={"SCALETRAIN_LOG_DIR": str(run.folder / "file")})
    assert result.returncode == 0, result.stdout
    assert "no log of its own" in result.stdout


def test_a_mistake_stands_in_the_log_and_in_the_jobs_and_the_help_where_it_was_asked_for(new_run: NewRun) -> None:
    run = new_run("mistaken")
    environment = {"SCALETRAIN_LOG_DIR": str(run.folder / "logs")}
    assert "--train.max_steps" in run.alone("--help", environment=environment).stdout
    assert not (run.folder / "logs").exists()
    # The first is found before the run begins, the second after.
    mistakes = ((("--optim.lr", "fast"), "optim.lr = fast"), (("--data.manifest", "gone"), "The manifest gone"))
    for flags, words in mistakes:
        result = run.alone(*flags, environment=environment)
        assert result.returncode == 2 and f"error: {words}" in result.stdout, result.stdout
        assert f"error: {words}" in (run.folder / "logs" / "rank-00000.log").read_text()


def test_signals_that_were_blocked_for_a_launcher_reach_the_ranks(new_run: NewRun) -> None:
    """Slurm signals all processes of a step; between them and the ranks a launcher must not react."""
    run = new_run("blocked")
    code = (
        "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR1]); "
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    (rank,) = run.start_ranks(1, "--train.max_steps", 5000, through=[sys.executable, "-c", code])
    run.wait_for_step(3, attempt=1)
    rank.send_signal(signal.SIGTERM)
    assert rank.wait(timeout=60) == 75
    assert run.verdicts(1) == ["requeue"]


@pytest.mark.thorough  # tests/training/test_processes.py has the same of each group, without a run
def test_a_rank_that_stands_still_holds_the_others_no_longer_than_the_limit(new_run: NewRun) -> None:
    run = new_run("still")
    ranks = run.start_ranks(2, "--train.max_steps", 5000, "--train.collective_timeout_s", 4)
    run.wait_for_step(3, attempt=1)
    os.kill(run.pid_of(1, 1), signal.SIGSTOP)
    stopped_s = time.monotonic()
    try:
        assert ranks[0].wait(timeout=60) == 1
        assert time.monotonic() - stopped_s < 30
        eventually(lambda: run.verdicts(1)[:1] == ["crash"], 10, "the verdict of rank 0")
        (ended,) = read_verdicts(run.run_dir, 1).values()
        assert ended["reason"] == "a collective waited longer than train.collective_timeout_s = 4 s for another rank"
        assert "Timed out waiting 4000ms" in run.output_of("rank-0").read_text()
    finally:
        ranks[1].kill()
        ranks[1].wait(timeout=30)
