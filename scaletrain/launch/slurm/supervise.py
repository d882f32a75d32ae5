"""The command that a job's batch script becomes: ``python -m scaletrain.launch.slurm.supervise ARGUMENTS``."""

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from scaletrain.errors import ConfigError
from scaletrain.launch.slurm.commands import Slurm
from scaletrain.launch.slurm.job import Job
from scaletrain.launch.slurm.settings import Settings
from scaletrain.launch.slurm.steps import node_python, srun_command
from scaletrain.launch.slurm.supervisor import Supervisor
from scaletrain.launch.verdicts import EXIT_CODES, Verdict

_RESOLVE_S = 120.0


def main(arguments: Sequence[str]) -> int:
    """Supervises a training.

    Args:
        arguments: The training's.

    Returns:
        The job's exit code.
    """
    logging.basicConfig(level=logging.WARNING, format="scaletrain: %(message)s")
    # Until the supervisor listens: a signal must not end it without a word.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    root = Path(__file__).resolve().parents[3]
    slurm = Slurm()
    try:
        settings = Settings.from_environment(os.environ)
        job = Job.of_this_process(os.environ, slurm)
        if settings.spare_nodes >= len(job.nodes):
            raise ConfigError(
                f"SPARE_NODES={settings.spare_nodes}, and the job has {len(job.nodes)} nodes: none is left to train on"
            )
        run_dir = resolve(job, settings, root, arguments)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_CODES[Verdict.USER_ERROR]
    return Supervisor(job, settings, slurm, run_dir, root, arguments).run()


def resolve(job: Job, settings: Settings, root: Path, arguments: Sequence[str]) -> Path:
    """Checks the training's arguments in its own environment, on one node.

    Args:
        job: The job.
        settings: Names the container.
        root: Folder of the project.
        arguments: The training's.

    Returns:
        The run's folder, absolute.

    Raises:
        ConfigError: They are wrong.
    """
    command = [node_python(settings), "-m", "scaletrain.launch.slurm.resolve", *arguments]
    if settings.container:
        command = srun_command(job, settings, "resolve", job.nodes[:1], command, (root, Path.cwd()))
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_RESOLVE_S)
    if done.returncode != 0:
        raise ConfigError(done.stderr.strip().removeprefix("error: ") or f"code {done.returncode}")
    return Path(json.loads(done.stdout.splitlines()[-1])["run_dir"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
