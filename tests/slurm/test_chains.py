"""Jobs that follow each other, many at once, and side by side on the same nodes."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

from scaletrain.launch.events import read_events
from scaletrain.launch.slurm.job import Job
from tests.integration.runs import ROOT
from tests.slurm.cluster import Cluster
from tests.slurm.jobs import ENVIRONMENT, STEPS, SlurmRun

NewRun = Callable[[str], SlurmRun]
SHORT = ("--train.max_steps", 40, "--checkpoint.every_steps", 20, "--eval.every_steps", 20)


def test_fine_tuning_follows_pretraining(new_run: NewRun, cluster: Cluster) -> None:
    """It waits until the run is complete, however often that is requeued, and begins with its final weights."""
    run = new_run("chain")
    first = run.submit(*SHORT, options=("--job-name=first",))
    tuned = ("--run_dir", "runs/tuned", "--init", "runs/tiny", "--optim.lr", "1e-4")
    second = run.submit(
        *SHORT, *tuned, nodes=1, script=ROOT / "slurm" / "finetune.sh", options=(f"--dependency=afterok:{first}",)
    )
    assert cluster.job(second)["JobState"] == "PENDING"
    run.ends_as("COMPLETED")
    assert cluster.job(first)["JobState"] == "COMPLETED"
    events = read_events(run.folder / "runs" / "tuned" / "events.jsonl")
    (source,) = [event for event in events if event["event"] == "init"]
    assert source["source_step"] == 40
    assert source["folder"].endswith("runs/tiny/checkpoints/step_00000040")
    begins = json.loads((run.folder / "runs" / "tuned" / "metrics.jsonl").read_text().splitlines()[0])["train/loss"]
    assert abs(begins - run.losses()[-1][1]) < 1 < run.losses()[0][1] - begins


def test_a_sweep(new_run: NewRun, cluster: Cluster) -> None:
    run = new_run("sweep")
    (run.folder / "rates.txt").write_text("# learning rates\n--optim.lr 1e-3\n\n--optim.lr 3e-3\n--optim.lr 1e-2\n")
    options = ("--array=0-2", "-N1", "--gpus-per-node=1", "--cpus-per-gpu=1")
    words = ("rates.txt", "--config", run.config, *SHORT)
    environment = ENVIRONMENT | {"NODE_LEDGER": str(run.ledger)}
    job_id = cluster.sbatch(*options, ROOT / "slurm" / "sweep.sh", *words, cwd=run.folder, environment=environment)
    for task in range(3):
        cluster.wait_for_job(f"{job_id}_{task}", "COMPLETED")
    table = (run.folder / "runs" / "rates" / "comparison.md").read_text()
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")]
    assert [cell.strip("| ") for cell in rows[0][:2]] == ["run", "optim.lr"]
    assert {tuple(cell.strip("| ") for cell in row[:2]) for row in rows[1:]} == {
        ("0", "0.001"),
        ("1", "0.003"),
        ("2", "0.01"),
    }
    assert all("complete" in row[-1] for row in rows[1:])
    assert len(list((run.folder / "runs" / "rates").glob("*/tb/events.out.tfevents.*"))) == 3


def test_a_task_of_an_array_is_requeued_alone(cluster: Cluster, tmp_path: Path) -> None:
    """The last task has the array's number, by which Slurm requeues all of them."""
    script = tmp_path / "waits.sh"
    script.write_text("#!/bin/bash\nsleep 120\n")
    job_id = cluster.sbatch("--array=0-1", "-N1", "-n1", "--requeue", script, cwd=tmp_path)
    for task in range(2):
        cluster.wait_for_job(f"{job_id}_{task}", "RUNNING")
    own = next(task for task in range(2) if cluster.job(f"{job_id}_{task}")["JobId"] == job_id)
    shown = cluster.job(f"{job_id}_{own}")
    job = Job(shown["JobId"], "x", 0, ("n1",), {}, 0, 1, None, (), (job_id, own))
    code = f"from scaletrain.launch.slurm.commands import Slurm; assert Slurm().requeue({job.queue_name!r}, ['n3'], 60)"
    cluster.run(sys.executable, "-c", code, cwd=ROOT)
    requeued, other = (cluster.job(f"{job_id}_{task}") for task in (own, 1 - own))
    assert (requeued["Restarts"], requeued["ExcNodeList"]) == ("1", "n3")
    assert (other["JobState"], other["Restarts"], other["ExcNodeList"]) == ("RUNNING", "0", "(null)")


def test_two_jobs_on_the_same_nodes(new_run: NewRun, cluster: Cluster, undisturbed: SlurmRun) -> None:
    """Neither ports nor locks nor GPUs meet, and both have the losses of a job that was alone."""
    runs = [new_run("one"), new_run("other")]
    for run in runs:
        run.submit(options=("--oversubscribe", "--cpus-per-gpu=1", "--mem=500", "-w", "n1,n2"))
    runs[0].reaches(5)
    runs[1].reaches(5)
    assert [cluster.job(run.job_id)["JobState"] for run in runs] == ["RUNNING", "RUNNING"]
    for run in runs:
        run.ends_as("COMPLETED")
        assert run.losses() == undisturbed.losses()
        assert len(run.losses()) == STEPS
    plans = [json.loads((run.run_dir / "logs" / "launch-0001" / "plan.json").read_text()) for run in runs]
    assert plans[0]["port"] != plans[1]["port"]


def test_a_health_check(new_run: NewRun, cluster: Cluster) -> None:
    run = new_run("health")
    cluster.slow_down("n3", "1mbit")
    environment = ENVIRONMENT | {"MIN_BANDWIDTH_GB_S": "0.01", "CHECK_LIMIT_S": "60"}
    script = ROOT / "slurm" / "healthcheck.sh"
    job_id = cluster.sbatch("-N3", "--gpus-per-node=1", script, cwd=run.folder, environment=environment)
    cluster.wait_for_job(job_id, "FAILED", within_s=180)
    assert cluster.job(job_id)["ExitCode"] == "1:0"
    log = run.log
    assert [line.split()[:2] for line in log.splitlines() if line.startswith(("ok", "FAIL"))] == [
        ["ok", "n1"],
        ["ok", "n2"],
        ["FAIL", "n3"],
    ], log
    assert "MIN_BANDWIDTH_GB_S" in log
