"""The job that this process belongs to, as Slurm describes it."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from scaletrain.errors import ConfigError
from scaletrain.launch.slurm.commands import Slurm
from scaletrain.launch.slurm.decision import Asked


@dataclass(frozen=True)
class Job:
    """A job that runs.

    Attributes:
        job_id: Slurm's number, without an array's.
        name: Its name.
        restarts: How many times it was requeued.
        nodes: Its nodes, in Slurm's order.
        addresses: Address of each of them.
        gpus: GPUs on each node; 0 for a training on CPUs.
        cpus: Cores that a step may take on each node.
        end_s: When its time is over, in Unix seconds; None where it has no limit.
        excluded: Nodes that it was told to avoid.
        array: Number of the job array and index in it; None for none.
        partition_nodes: Nodes of its partition; None where Slurm does not say.
    """

    job_id: str
    name: str
    restarts: int
    nodes: tuple[str, ...]
    addresses: Mapping[str, str]
    gpus: int
    cpus: int
    end_s: float | None
    excluded: tuple[str, ...]
    array: tuple[str, int] | None = None
    partition_nodes: int | None = None

    @classmethod
    def of_this_process(cls, environ: Mapping[str, str], slurm: Slurm) -> "Job":
        """Reads the job of a batch script.

        Args:
            environ: Its environment.
            slurm: To ask for the rest.

        Raises:
            ConfigError: This is no job.
        """
        job_id = environ.get("SLURM_JOB_ID")
        if not job_id or "SLURM_JOB_NODELIST" not in environ:
            raise ConfigError("this is no Slurm job; give the script to sbatch: sbatch slurm/pretrain.sh ...")
        shown = slurm.show_job(job_id)
        nodes = tuple(slurm.expand(environ["SLURM_JOB_NODELIST"]))
        if not nodes:
            raise ConfigError(f"Slurm does not name the nodes of job {job_id}: is scontrol on the PATH?")
        array = None
        if "SLURM_ARRAY_JOB_ID" in environ:
            array = (environ["SLURM_ARRAY_JOB_ID"], int(environ["SLURM_ARRAY_TASK_ID"]))
        return cls(
            job_id=job_id,
            name=environ.get("SLURM_JOB_NAME", shown.get("JobName", "")),
            restarts=int(environ.get("SLURM_RESTART_COUNT", shown.get("Restarts", "0"))),
            nodes=nodes,
            addresses=slurm.addresses(nodes),
            gpus=_gpus(environ),
            cpus=_cpus(environ),
            end_s=unix_s(shown.get("EndTime", "")),
            excluded=tuple(slurm.expand(shown.get("ExcNodeList", "").replace("(null)", ""))),
            array=array,
            partition_nodes=slurm.partition_nodes(shown.get("Partition", "")),
        )

    @property
    def queue_name(self) -> str:
        """What names this job alone: of one task of an array the number is the array's, and means all of them."""
        return self.job_id if self.array is None else f"{self.array[0]}_{self.array[1]}"

    def asked(self, slurm: Slurm, host: str) -> Asked | None:
        """What Slurm has decided of this job.

        Args:
            slurm: To ask.
            host: Name of the node that asks.

        Returns:
            CANCELLED, REQUEUED or REPLACED; NOBODY while it runs here; None where Slurm does not answer.
        """
        shown = slurm.show_job(self.job_id)
        state = shown.get("JobState", "")
        if not state:
            return None
        if int(shown.get("Restarts", self.restarts)) != self.restarts:
            return Asked.REPLACED if state == "RUNNING" else Asked.REQUEUED
        if state == "RUNNING":
            return Asked.NOBODY if shown.get("BatchHost", host) == host else Asked.REPLACED
        if state == "CANCELLED":
            return Asked.CANCELLED
        # What runs here still, though Slurm has the job as pending or completing, is being ended by it.
        return Asked.REQUEUED


def _gpus(environ: Mapping[str, str]) -> int:
    if environ.get("DS_ACCELERATOR") == "cpu":
        return 0
    for variable in ("SLURM_GPUS_ON_NODE", "SLURM_GPUS_PER_NODE"):
        found = re.search(r"(\d+)$", environ.get(variable, ""))  # "8" or "h100:8"
        if found:
            return int(found[1])
    return len([one for one in environ.get("SLURM_JOB_GPUS", "").split(",") if one])


def _cpus(environ: Mapping[str, str]) -> int:
    """The smallest of the nodes' numbers of cores, such as in ``16(x3),8``."""
    numbers = re.findall(r"(\d+)(?:\(x\d+\))?(?:,|$)", environ.get("SLURM_JOB_CPUS_PER_NODE", ""))
    return min(map(int, numbers), default=int(environ.get("SLURM_CPUS_ON_NODE", os.cpu_count() or 1)))


def unix_s(text: str) -> float | None:
    """A time as scontrol shows it, in this machine's zone; None for Unknown."""
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S").timestamp()
    except ValueError:
        return None
