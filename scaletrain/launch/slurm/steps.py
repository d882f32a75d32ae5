"""Job steps: commands that srun runs once on each of some nodes of the job."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from scaletrain.launch.slurm.job import Job
from scaletrain.launch.slurm.settings import Settings

_LEAVE_S = 5.0


def in_container(settings: Settings, mounts: Sequence[Path]) -> tuple[list[str], list[str]]:
    """How a command comes to run in the job's container.

    Args:
        settings: Names the image, or none.
        mounts: Folders that must be seen inside under their own names.

    Returns:
        Options for srun, and words before the command.
    """
    image = settings.container
    if not image:
        return [], []
    places = [f"{path}:{path}" for path in dict.fromkeys(mounts)]
    places += [place for place in settings.container_mounts.split(",") if place]
    if image.endswith(".sif"):
        return [], ["apptainer", "exec", "--nv", *(f"--bind={place}" for place in places), image]
    return [f"--container-image={image}", f"--container-mounts={','.join(places)}"], []


def slots(job: Job, settings: Settings) -> int:
    """Ranks on each node."""
    return settings.local_ranks or max(1, job.gpus)


def node_python(settings: Settings) -> str:
    """The interpreter on the nodes: this one, or the container's own."""
    return "python3" if settings.container else sys.executable


def srun_command(
    job: Job, settings: Settings, name: str, nodes: Sequence[str], command: Sequence[str], mounts: Sequence[Path]
) -> list[str]:
    """The command line of a step.

    Args:
        job: The job.
        settings: Names the container.
        name: The step's name.
        nodes: Nodes to run on, once each.
        command: What runs there; no shell reads it.
        mounts: Folders to be seen in a container.
    """
    options, words = in_container(settings, mounts)
    return [
        "srun",
        f"--job-name={name}",
        f"--nodes={len(nodes)}",
        f"--ntasks={len(nodes)}",
        "--ntasks-per-node=1",
        f"--nodelist={','.join(nodes)}",
        f"--cpus-per-task={job.cpus}",  # srun does not take it over from sbatch since 22.05
        "--cpu-bind=quiet,none",  # one task starts all ranks of its node
        "--overlap",
        "--no-kill",
        "--kill-on-bad-exit=0",  # the other nodes' ranks leave their verdicts by themselves
        "--wait=60",
        "--mpi=none",
        "--input=none",
        "--unbuffered",
        # A total for the job, as --gpus gives, would be asked for by a step on fewer nodes, too.
        *([f"--gpus-per-node={job.gpus}"] if job.gpus and "SLURM_GPUS" in os.environ else []),
        *options,
        *words,
        *command,
    ]


class Step:
    """A step that runs.

    Args:
        command: What ``srun_command`` returned.
        log: File for its output; None for this process's own.
    """

    def __init__(self, command: Sequence[str], log: Path | None = None) -> None:
        environment = {name: value for name, value in os.environ.items() if not _is_about_the_batch_step(name)}
        if log is None:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment)
        else:
            with log.open("ab") as output:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
                )

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.poll()

    def wait(self, until_s: float) -> int | None:
        """Its exit code once it has ended; None where it runs still at that time (of ``time.monotonic``)."""
        while self._process.poll() is None and time.monotonic() < until_s:
            time.sleep(0.1)
        return self._process.poll()

    def end(self) -> None:
        """Ends its processes on all nodes that can be reached, and does not wait for the others."""
        # srun kills the tasks when it is asked to end; it waits without a limit for a node that does not answer.
        for deed in (self._process.terminate, self._process.terminate, self._process.kill):
            if self._process.poll() is None:
                deed()
                self.wait(time.monotonic() + _LEAVE_S)


def _is_about_the_batch_step(name: str) -> bool:
    """Options that sbatch leaves in the environment, and srun would obey: the command line says what is meant."""
    return name in (
        "SLURM_CPUS_PER_TASK",
        "SLURM_CPUS_PER_GPU",
        "SLURM_GPUS",
        "SLURM_TRES_PER_TASK",
        "SLURM_NTASKS",
        "SLURM_NPROCS",
        "SLURM_NTASKS_PER_NODE",
        "SLURM_DISTRIBUTION",
        "SLURM_MEM_PER_CPU",
        "SLURM_CPU_BIND",
        "SLURM_MEM_BIND",
    )
