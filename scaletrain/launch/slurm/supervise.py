"""The command that a job's batch script becomes: ``python -m scaletrain.launch.slurm.supervise ARGUMENTS``."""

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scaletrain.errors import ConfigError, ScaletrainError
from scaletrain.launch.slurm.commands import Slurm
from scaletrain.launch.slurm.hook import run_hook
from scaletrain.launch.slurm.job import Job
from scaletrain.launch.slurm.settings import Settings
from scaletrain.launch.slurm.steps import node_python, slots, srun_command
from scaletrain.launch.slurm.supervisor import Supervisor
from scaletrain.launch.verdicts import EXIT_CODES, Verdict

_RESOLVE_S = 300.0
_TRIES = 3


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
        run_dir = resolve(job, settings, root, arguments).run_dir
        plan(job, settings, root, run_dir, arguments)
    except ScaletrainError as error:
        print(f"error: {error}", file=sys.stderr)
        code = EXIT_CODES[Verdict.CRASH if isinstance(error, StartError) else Verdict.USER_ERROR]
        run_hook(os.environ.get("ON_END", ""), code, str(error))
        return code
    return Supervisor(job, settings, slurm, run_dir, root, arguments).run()


class StartError(ScaletrainError):
    """The training's environment does not work; nothing is known to be wrong with what the user asked for."""


@dataclass(frozen=True)
class Resolved:
    """What the arguments of a training come to.

    Attributes:
        run_dir: The run's folder, absolute.
        max_steps: Steps of the whole run.
    """

    run_dir: Path
    max_steps: int


def resolve(job: Job, settings: Settings, root: Path, arguments: Sequence[str]) -> Resolved:
    """Checks the training's arguments in its own environment, on one node.

    Args:
        job: The job.
        settings: Names the container.
        root: Folder of the project.
        arguments: The training's.

    Returns:
        What they come to.

    Raises:
        ConfigError: They are wrong.
        StartError: It cannot be told, on any of three nodes.
    """
    problems = []
    for turn in range(_TRIES):
        # In a container each time on another node: the first one may be the sick one.
        node = job.nodes[turn % len(job.nodes)]
        try:
            done = _run(job, settings, root, ["-m", "scaletrain.launch.slurm.resolve", *arguments], node=node)
        except (OSError, subprocess.TimeoutExpired) as error:
            problems.append(f"{node}: {error}")
            continue
        if done.returncode == EXIT_CODES[Verdict.USER_ERROR]:
            raise ConfigError(done.stderr.strip().rpartition("error: ")[2])
        if done.returncode == 0:
            told = json.loads(done.stdout.splitlines()[-1])
            return Resolved(Path(told["run_dir"]), int(told["max_steps"]))
        problems.append(f"{node}: code {done.returncode}: {done.stderr.strip()[-300:]}")
    raise StartError(f"the training's arguments cannot be checked: {'; '.join(problems)}")


def plan(job: Job, settings: Settings, root: Path, run_dir: Path, arguments: Sequence[str]) -> None:
    """Opens the corpus and makes the plan of the run on one node, before all of them are checked.

    Args:
        job: The job.
        settings: Names the container.
        root: Folder of the project.
        run_dir: The run's folder; the plan is left in ``logs/plan.txt``.
        arguments: The training's.

    Raises:
        ConfigError: The training would refuse to start.
    """
    ranks = (len(job.nodes) - settings.spare_nodes) * slots(job, settings)
    try:
        done = _run(job, settings, root, [str(root / "scaletrain" / "train.py"), *arguments, "--dry_run"], ranks)
    except subprocess.TimeoutExpired:
        print(f"warning: no plan within {_RESOLVE_S:.0f} s: the corpus is slow to open", file=sys.stderr)
        return
    if done.returncode == EXIT_CODES[Verdict.USER_ERROR]:
        raise ConfigError(done.stderr.strip().rpartition("error: ")[2])
    try:
        (run_dir / "logs").mkdir(parents=True, exist_ok=True)
        (run_dir / "logs" / "plan.txt").write_text(done.stdout + done.stderr)
    except OSError as error:  # the supervisor settles what that means
        print(f"warning: the plan cannot be written: {error}", file=sys.stderr)


def _run(
    job: Job, settings: Settings, root: Path, words: Sequence[str], ranks: int = 1, node: str | None = None
) -> "subprocess.CompletedProcess[str]":
    command = [node_python(settings), *words]
    if settings.container:
        command = srun_command(job, settings, "plan", [node or job.nodes[0]], command, (root, Path.cwd()))
    return subprocess.run(
        command,
        env=dict(os.environ) | {"WORLD_SIZE": str(ranks)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_RESOLVE_S,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
