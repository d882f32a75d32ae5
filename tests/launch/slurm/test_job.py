"""A job as Slurm describes it; the texts are Slurm 22.05's."""

import os
from pathlib import Path

import pytest

from scaletrain.errors import ConfigError
from scaletrain.launch.slurm.commands import Slurm
from scaletrain.launch.slurm.decision import Asked
from scaletrain.launch.slurm.job import Job

SHOWN = (
    "JobId=17 JobName=pretrain UserId=root(0) JobState={state} Reason=None Requeue=1 Restarts={restarts} "
    "TimeLimit=00:10:00 StartTime=2026-11-25T06:38:22 EndTime=2026-11-25T06:48:22 ReqNodeList=(null) "
    "ExcNodeList=n[7-8] NodeList=n[1-2] BatchHost=n1 NumNodes=2 Command=/a/slurm/pretrain.sh --config x "
    "StdOut=/a/pretrain-17.log Partition=main TresPerNode=gres:gpu:8"
)
SCONTROL = """#!/bin/sh
echo "scontrol $*" >>"$CALLS"
case "$*" in
*"show job"*) cat "$SHOWN" ;;
*"hostnames n[1-2]"*) printf 'n1\\nn2\\n' ;;
*"hostnames n[7-8]"*) printf 'n7\\nn8\\n' ;;
*"show partition main"*) echo "PartitionName=main State=UP TotalCPUs=2304 TotalNodes=24" ;;
*"show node"*) echo "NodeName=n1 NodeAddr=10.0.0.1 State=MIXED"; echo "NodeName=n2 NodeAddr=n2 State=DOWN*+DRAIN" ;;
*requeue*) test -e "$CALLS.again" || { touch "$CALLS.again"; echo "try again" >&2; exit 1; } ;;
esac
"""
ENVIRONMENT = {
    "SLURM_JOB_ID": "17",
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_JOB_NAME": "pretrain",
    "SLURM_GPUS_ON_NODE": "8",
    "SLURM_JOB_CPUS_PER_NODE": "96(x3),64",
}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """Slurm's commands, as far as a script can stand in for a cluster; the real ones are met in tests/slurm."""
    script = tmp_path / "scontrol"
    script.write_text(SCONTROL)
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("SHOWN", str(tmp_path / "shown"))
    show(tmp_path, "RUNNING", 0)
    return Slurm()


def show(folder: Path, state: str, restarts: int) -> None:
    (folder / "shown").write_text(SHOWN.format(state=state, restarts=restarts) + "\n")


def test_a_job_is_read(slurm: Slurm) -> None:
    job = Job.of_this_process(ENVIRONMENT, slurm)
    assert (job.job_id, job.name, job.restarts, job.nodes) == ("17", "pretrain", 0, ("n1", "n2"))
    assert job.addresses == {"n1": "10.0.0.1", "n2": "n2"}
    assert (job.gpus, job.cpus, job.excluded) == (8, 64, ("n7", "n8"))
    assert job.partition_nodes == 24 and slurm.partition_nodes("other") is None
    assert job.end_s is not None


def test_a_task_of_an_array_is_told_apart_from_the_array(slurm: Slurm, tmp_path: Path) -> None:
    """One task has the array's number: a command about that number would be about all tasks."""
    shown = SHOWN.format(state="PENDING", restarts=7).replace("JobId=17", "JobId=18")
    (tmp_path / "shown").write_text(f"{shown}\n{SHOWN.format(state='RUNNING', restarts=0)}\n")
    job = Job.of_this_process(ENVIRONMENT | {"SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "2"}, slurm)
    assert (job.job_id, job.queue_name, job.restarts) == ("17", "17_2", 0)
    assert job.asked(slurm, "n1") is Asked.NOBODY
    assert Job.of_this_process(ENVIRONMENT, slurm).queue_name == "17"


@pytest.mark.parametrize(
    ("more", "gpus"),
    [
        ({"SLURM_GPUS_ON_NODE": "", "SLURM_GPUS_PER_NODE": "h100:4"}, 4),
        ({"SLURM_GPUS_ON_NODE": ""}, 0),
        ({"DS_ACCELERATOR": "cpu"}, 0),
    ],
)
def test_gpus(slurm: Slurm, more: dict[str, str], gpus: int) -> None:
    assert Job.of_this_process(ENVIRONMENT | more, slurm).gpus == gpus


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("16(x3),8", 8), ("64", 64), ("8,16(x2)", 8), ("4(x2)", 4)],
)
def test_cores_are_those_of_the_smallest_node(slurm: Slurm, text: str, cpus: int) -> None:
    assert Job.of_this_process(ENVIRONMENT | {"SLURM_JOB_CPUS_PER_NODE": text}, slurm).cpus == cpus


def test_a_job_without_a_time_limit_has_no_end(slurm: Slurm, tmp_path: Path) -> None:
    (tmp_path / "shown").write_text(SHOWN.format(state="RUNNING", restarts=0).replace("2026-11-25T06:48:22", "Unknown"))
    assert Job.of_this_process(ENVIRONMENT, slurm).end_s is None


def test_where_slurm_does_not_answer_nothing_is_concluded(slurm: Slurm, tmp_path: Path) -> None:
    job = Job.of_this_process(ENVIRONMENT, slurm)
    (tmp_path / "shown").write_text("slurm_load_jobs error: Unable to contact slurm controller\n")
    assert job.asked(slurm, "n1") is None


def test_outside_of_a_job_it_is_said_what_to_type(slurm: Slurm) -> None:
    with pytest.raises(ConfigError, match="sbatch"):
        Job.of_this_process({}, slurm)


@pytest.mark.parametrize(
    ("state", "restarts", "host", "asked"),
    [
        ("RUNNING", 0, "n1", Asked.NOBODY),
        ("RUNNING", 0, "n2", Asked.REPLACED),
        ("RUNNING", 1, "n1", Asked.REPLACED),
        ("PENDING", 1, "n1", Asked.REQUEUED),
        ("COMPLETING", 0, "n1", Asked.REQUEUED),
        ("CANCELLED", 0, "n1", Asked.CANCELLED),
    ],
)
def test_what_slurm_has_decided(
    slurm: Slurm, tmp_path: Path, state: str, restarts: int, host: str, asked: Asked
) -> None:
    job = Job.of_this_process(ENVIRONMENT, slurm)
    show(tmp_path, state, restarts)
    assert job.asked(slurm, host) is asked


def test_it_is_requeued_before_nodes_are_excluded_and_again_where_slurm_is_busy(slurm: Slurm, tmp_path: Path) -> None:
    assert slurm.requeue("17", ["n2", "n7"], 0.0)
    assert (tmp_path / "calls").read_text().splitlines() == [
        "scontrol requeue 17",
        "scontrol requeue 17",
        "scontrol update JobId=17 ExcNodeList=n2,n7 StartTime=now+15",
    ]


def test_nodes_that_slurm_holds_to_be_gone(slurm: Slurm) -> None:
    assert slurm.unusable(["n1", "n2"]) == {"n2": "Slurm has it as DOWN*+DRAIN"}
