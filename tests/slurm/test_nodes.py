"""Nodes that fail, on a real Slurm: found, named, left out, and the run goes on with the same losses."""

import time
from collections.abc import Callable

import pytest

from scaletrain.launch.slurm.ledger import Failure, Ledger
from tests.processes import eventually
from tests.slurm.cluster import Cluster
from tests.slurm.jobs import SlurmRun

NewRun = Callable[[str], SlurmRun]

# A node that cannot be reached holds a collective for no longer than this.
COLLECTIVE = ("--train.collective_timeout_s", 10)


def test_a_killed_process(new_run: NewRun, undisturbed: SlurmRun) -> None:
    """The launch is repeated on the same nodes: the job is not given back to the queue."""
    run = new_run("process")
    run.submit()
    run.reaches(100)
    run.kill_rank(rank=1)
    run.ends_as("COMPLETED")
    assert run.nodes() == [["n1", "n2"], ["n1", "n2"]]
    assert "rank 1 on n2" in run.journal("launch_end")[0]["reason"]
    assert "SIGKILL" in run.journal("launch_end")[0]["reason"]
    assert run.losses() == undisturbed.losses()
    assert run.cluster.job(run.job_id)["Restarts"] == "0"


def test_a_node_whose_daemon_dies(new_run: NewRun, cluster: Cluster, undisturbed: SlurmRun) -> None:
    """Slurm holds the node to be down some time later; its processes live, and the training with them."""
    run = new_run("daemon")
    run.submit("--train.max_steps", 1500)
    run.reaches(100)
    cluster.kill_slurmd("n2")
    run.ends_as("COMPLETED")
    assert "Node failure on n2" in run.log, "Slurm has not noticed"
    assert run.nodes() == [["n1", "n2"]]
    assert run.losses()[: len(undisturbed.losses())] == undisturbed.losses()
    assert len(run.losses()) == 1500


def test_a_node_that_loses_power(new_run: NewRun, cluster: Cluster, undisturbed: SlurmRun) -> None:
    run = new_run("power")
    run.submit(*COLLECTIVE)
    run.reaches(100)
    cluster.power_off("n2")
    run.ends_as("COMPLETED")
    assert run.nodes() == [["n1", "n2"], ["n1", "n3"]]
    assert run.losses() == undisturbed.losses()


def test_a_cable_that_is_pulled(new_run: NewRun, cluster: Cluster, undisturbed: SlurmRun) -> None:
    run = new_run("cable")
    run.submit(*COLLECTIVE, environment={"PREFLIGHT": "nodes", "CHECK_LIMIT_S": "60"})
    run.reaches(100)
    cut_s = time.time()
    cluster.cut("n2")
    run.ends_as("COMPLETED")
    assert run.nodes() == [["n1", "n2"], ["n1", "n3"]]
    # The collectives' limit, and what the launcher, srun and the verdicts take.
    assert run.journal("launch_end")[0]["time_s"] - cut_s < 10 + 120
    assert run.losses() == undisturbed.losses()


def test_a_spare_takes_over(new_run: NewRun, cluster: Cluster, undisturbed: SlurmRun) -> None:
    """In the same allocation, without a wait in the queue."""
    run = new_run("spare")
    run.submit(*COLLECTIVE, nodes=3, environment={"SPARE_NODES": "1"})
    run.reaches(100)
    cluster.power_off("n2")
    run.ends_as("COMPLETED")
    assert run.nodes() == [["n1", "n2"], ["n1", "n3"]]
    assert run.journal("launch")[0]["spares"] == ["n3"]
    assert run.actions() == ["launch", "stop"]
    assert cluster.job(run.job_id)["Restarts"] == "0"
    assert run.losses() == undisturbed.losses()


SLOW = {"PREFLIGHT": "full", "CHECK_LIMIT_S": "40", "MIN_BANDWIDTH_GB_S": "0.01"}


def test_of_two_nodes_that_are_slow_together_one_is_left_out(
    new_run: NewRun, cluster: Cluster, undisturbed: SlurmRun
) -> None:
    """It cannot be told which is to blame: the job starts elsewhere, and nobody's ledger gets a name."""
    run = new_run("pair")
    cluster.slow_down("n2", "1mbit")
    run.submit(environment=SLOW | {"DRAIN_NODES": "0"})
    run.ends_as("COMPLETED")
    assert run.nodes() == [["n1", "n3"]]
    assert cluster.job(run.job_id)["ExcNodeList"] == "n2"
    assert [line["nodes"] for line in run.journal("suspicion")] == [["n1", "n2"]]
    assert not run.ledger.exists()
    assert run.losses() == undisturbed.losses()


def test_a_slow_node_is_named_drained_and_replaced(new_run: NewRun, cluster: Cluster, undisturbed: SlurmRun) -> None:
    """With a spare two good nodes are left, so that it is known which is bad."""
    run = new_run("slow")
    cluster.slow_down("n2", "1mbit")
    run.submit(nodes=3, environment=SLOW | {"SPARE_NODES": "1"})
    run.ends_as("COMPLETED")
    assert run.nodes() == [["n1", "n3"]]
    assert [line["node"] for line in run.journal("sick_node")] == ["n2"]
    assert "MIN_BANDWIDTH_GB_S" in run.journal("sick_node")[0]["reason"]
    assert len(list(run.ledger.glob("n2-*.json"))) == 1
    assert "DRAIN" in cluster.run("scontrol", "show", "node", "n2")
    assert cluster.job(run.job_id)["Restarts"] == "0"
    assert run.losses() == undisturbed.losses()


def test_a_node_that_other_jobs_have_seen_fail_twice_is_avoided(new_run: NewRun, undisturbed: SlurmRun) -> None:
    run = new_run("ledger")
    for job_id in ("98", "99"):
        Ledger(run.ledger, 7).record(Failure("n2", time.time(), job_id, "a lost GPU"))
    run.submit(nodes=3, environment={"SPARE_NODES": "1"})
    run.ends_as("COMPLETED")
    assert run.nodes() == [["n1", "n3"]]
    assert run.losses() == undisturbed.losses()


def test_a_job_that_would_leave_out_most_of_the_cluster_ends(new_run: NewRun, cluster: Cluster) -> None:
    """Of three nodes it may leave out one by itself; a fault of two is not theirs."""
    run = new_run("breaker")
    for node in ("n2", "n3"):
        for job_id in ("98", "99"):
            Ledger(run.ledger, 7).record(Failure(node, time.time(), job_id, f"a lost GPU of {node}"))
    run.submit(nodes=3, environment={"SPARE_NODES": "2"})
    run.ends_as("FAILED")
    assert (cluster.job(run.job_id)["ExitCode"], cluster.job(run.job_id)["Restarts"]) == ("78:0", "0")
    assert not run.nodes() and run.actions() == ["stop"]
    assert "a lost GPU of n2" in run.log and "a lost GPU of n3" in run.log and "MAX_EXCLUDED_SHARE" in run.log
    assert "DRAIN" not in cluster.run("sinfo", "--noheader", "-N", "-o", "%T").upper()


@pytest.mark.thorough
def test_what_is_left_on_a_node_that_slurm_gave_up(new_run: NewRun, cluster: Cluster) -> None:
    """The daemon of the only node dies: the job starts elsewhere, and what runs on the old node ends itself."""
    run = new_run("zombie")
    run.submit("--train.max_steps", 6000, nodes=1)
    run.reaches(100)
    cluster.kill_slurmd("n1")
    eventually(lambda: len(run.journal("job_start")) == 2, 200, lambda: run.log[-3000:])
    eventually(lambda: not cluster.pids_of("n1", "train.py"), 120, lambda: str(cluster.pids_of("n1", "train.py")))
    eventually(lambda: len(run.attempts()) == 2, 200, lambda: run.log[-3000:])
    cluster.run("scancel", run.job_id)
    assert "the job was replaced" in run.log
    assert run.nodes() == [["n1"], ["n2"]]
