"""Ends of a job, on a real Slurm: the same job goes on, and its losses are those of a run that nobody disturbed."""

import time
from collections.abc import Callable

from tests.processes import eventually
from tests.slurm.cluster import Cluster
from tests.slurm.jobs import STEPS, SlurmRun

NewRun = Callable[[str], SlurmRun]


def test_two_nodes_train(undisturbed: SlurmRun) -> None:
    assert undisturbed.nodes() == [["n1", "n2"]]
    assert [step for step, _ in undisturbed.losses()] == list(range(1, STEPS + 1))
    assert undisturbed.verdicts(1) == ["complete", "complete"]
    logs = undisturbed.run_dir / "logs" / "launch-0001"
    assert {path.name for path in logs.glob("rank-*")} == {"rank-00000.log", "rank-00001.log"}
    first = undisturbed.log.splitlines()[0]
    assert all(str(place) in first for place in (undisturbed.run_dir, undisturbed.ledger)), first


def test_the_time_limit(new_run: NewRun, undisturbed: SlurmRun) -> None:
    """The ranks are told by the batch script's signal alone, since they do not watch the time themselves."""
    run = new_run("limit")
    more = ("--train.max_steps", 100 * STEPS, "--train.exit_by_s", 0)
    # Slurm may send the signal up to a minute early.
    run.submit(*more, options=("-t", "2", "--signal=B:USR2@25"), environment={"CRASH_LIMIT": "9"})
    eventually(lambda: len(run.nodes()) == 2, 240, lambda: run.log[-6000:])
    run.reaches(max(STEPS, run.losses()[-1][0]) + 10)
    (run.run_dir / "stop").touch()
    run.ends_as("FAILED")
    assert run.actions() == ["requeue"] * (len(run.nodes()) - 1) + ["stop"]
    assert all("time limit" in line["reason"] for line in run.journal("decision")[:-1])
    assert run.losses()[:STEPS] == undisturbed.losses()
    assert [step for step, _ in run.losses()] == list(range(1, len(run.losses()) + 1))
    assert run.cluster.job(run.job_id)["ExitCode"] == "130:0"


def test_scontrol_requeue(new_run: NewRun, cluster: Cluster, undisturbed: SlurmRun) -> None:
    run = new_run("requeue")
    run.submit()
    run.reaches(100)
    cluster.run("scontrol", "requeue", run.job_id)
    run.ends_as("COMPLETED", start_now=True)
    assert run.verdicts(1) == ["requeue", "requeue"]
    assert run.losses() == undisturbed.losses()


def test_scancel_with_a_signal(new_run: NewRun, cluster: Cluster, undisturbed: SlurmRun) -> None:
    run = new_run("term")
    run.submit()
    run.reaches(100)
    cluster.run("scancel", "--signal=TERM", run.job_id)
    run.ends_as("COMPLETED")
    assert run.verdicts(1) == ["requeue", "requeue"]
    assert run.actions() == ["requeue", "stop"]
    assert run.losses() == undisturbed.losses()


def test_scancel_is_not_answered_by_a_requeue(new_run: NewRun, cluster: Cluster) -> None:
    run = new_run("cancel")
    run.submit()
    run.reaches(20)
    cluster.run("scancel", run.job_id)
    run.ends_as("CANCELLED")
    time.sleep(3)
    assert cluster.job(run.job_id)["JobState"] == "CANCELLED"
    assert "requeue" not in run.actions()
    assert run.verdicts(1) == ["requeue", "requeue"], "the ranks had no time to save"


def test_preemption(new_run: NewRun, cluster: Cluster, undisturbed: SlurmRun) -> None:
    run = new_run("preempted")
    run.submit()
    run.reaches(100)
    urgent = cluster.sbatch("-N3", "-p", "urgent", "--exclusive", "--wrap", "sleep 5", cwd=run.folder)
    cluster.wait_for_job(urgent, "COMPLETED", within_s=90)
    run.ends_as("COMPLETED", start_now=True)
    assert run.verdicts(1) == ["requeue", "requeue"]
    assert run.losses() == undisturbed.losses()


def test_a_mistake_of_the_user_is_not_repeated(new_run: NewRun) -> None:
    run = new_run("mistake")
    run.submit("--optim.lrr", "1e-4", environment={"ON_END": 'echo "the hook got $EXIT_CODE"'})
    run.ends_as("FAILED")
    assert "--optim.lrr: no such key" in run.log
    assert "the hook got 2" in run.log
    assert "optim.lr" in run.log
    assert run.cluster.job(run.job_id)["ExitCode"] == "2:0"
    assert run.cluster.job(run.job_id)["Restarts"] == "0"


def test_a_crash_loop_ends(new_run: NewRun, cluster: Cluster) -> None:
    """A rank that is killed in each launch before anything is saved."""
    run = new_run("loop")
    run.submit("--checkpoint.every_steps", 0, "--train.max_steps", 20000)
    for launch in (1, 2, 3):
        eventually(lambda n=launch: len(run.nodes()) == n, 90, lambda: run.log)  # type: ignore[misc]
        eventually(lambda n=launch: len(run.attempts()) == n, 60, lambda: run.log)  # type: ignore[misc]
        run.kill_rank(rank=1)
    run.ends_as("FAILED")
    assert run.actions() == ["launch", "requeue", "stop"]
    assert cluster.job(run.job_id)["ExitCode"] == "78:0"
    assert "3 launches in a row have saved no new step" in run.log
    assert run.log.count("SIGKILL") >= 3
