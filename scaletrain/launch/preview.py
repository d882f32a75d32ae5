"""Shows without a cluster what a job would do: ``python -m scaletrain.launch.preview -N 4 slurm/pretrain.sh ...``.

It takes the command line of sbatch. Two options of its own may stand before that: ``--gpu NAME``, which the time is
planned for where this machine has another one or none, and ``--step_s SECONDS``, the measured duration of a step.
"""

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from scaletrain.errors import ConfigError, ScaletrainError
from scaletrain.launch.requeues import measured_step_s, planned_s, requeue_lines
from scaletrain.launch.slurm.batch_options import (
    CommandLine,
    Option,
    count_nodes,
    count_tasks,
    first_task,
    gpus_per_node,
    job_environment,
    merge,
    read_command_line,
    read_environment,
    read_script,
    time_limit_s,
)
from scaletrain.launch.slurm.job import Job
from scaletrain.launch.slurm.journal import Journal
from scaletrain.launch.slurm.launching import Launch
from scaletrain.launch.slurm.node import added_variables, launcher_command
from scaletrain.launch.slurm.scripts import supervises, training_arguments
from scaletrain.launch.slurm.settings import Settings
from scaletrain.launch.slurm.steps import slots
from scaletrain.launch.slurm.supervise import Resolved, resolve

_PLACEHOLDER_JOB = "1000"
_PLAN_LIMIT_S = 600.0
_CHECKS = {
    "full": "each node, then the all-reduce between them",
    "nodes": "each node, not the connections between them",
    "off": "none (PREFLIGHT=off)",
}


@dataclass(frozen=True)
class Previewed:
    """What a job would be.

    Attributes:
        line: The command line.
        options: All options that hold, by name.
        job: A job of that size, with invented nodes.
        limit_s: Its time limit in seconds; None for none, or one that is not known.
        settings: From the environment.
        trains: Whether the script supervises a training.
        arguments: The training's.
        gpu: The vendor's name of the GPU to plan for; None for this machine's.
        step_s: Duration of a step in seconds, as given; None where it was not.
    """

    line: CommandLine
    options: Mapping[str, Option]
    job: Job
    limit_s: float | None
    settings: Settings
    trains: bool
    arguments: tuple[str, ...]
    gpu: str | None
    step_s: float | None


def read(words: Sequence[str], environ: Mapping[str, str]) -> Previewed:
    """Reads what would be given to sbatch.

    Args:
        words: Its command line.
        environ: Its environment.

    Raises:
        ConfigError: Something of it is wrong.
    """
    own, words = _take_own(list(words))
    line = read_command_line(words)
    try:
        text = Path(line.script).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{line.script}: {getattr(error, 'strerror', None) or 'no text'}") from None
    try:
        options = merge(read_script(text), read_environment(environ), line.options)
    except ConfigError as error:
        raise ConfigError(f"{line.script}: {error}") from None
    given = job_environment(options, environ)
    settings = Settings.from_environment(given)
    limit_s = time_limit_s(options["time"].value) if "time" in options else None
    job = _job(options, Path(line.script).name, limit_s, given)
    if settings.spare_nodes >= len(job.nodes):
        raise ConfigError(f"SPARE_NODES={settings.spare_nodes} of {len(job.nodes)} nodes leaves none to train on")
    task = first_task(options["array"].value) if "array" in options else None
    return Previewed(
        line=line,
        options=options,
        job=job,
        limit_s=limit_s,
        settings=settings,
        trains=supervises(text),
        arguments=training_arguments(Path(line.script).name, line.arguments, task),
        gpu=own.get("--gpu"),
        step_s=float(own["--step_s"]) if "--step_s" in own else None,
    )


def _job(options: Mapping[str, Option], script: str, limit_s: float | None, environ: Mapping[str, str]) -> Job:
    count = count_nodes(options)
    nodes = tuple(f"node{number:04d}" for number in range(1, count + 1))
    return Job(
        job_id=_PLACEHOLDER_JOB,
        name=options["job-name"].value if "job-name" in options else script,
        restarts=0,
        nodes=nodes,
        addresses={node: node for node in nodes},
        gpus=0 if environ.get("DS_ACCELERATOR") == "cpu" else gpus_per_node(options),
        cpus=0,  # the node's, which are not known here
        end_s=None if limit_s is None else time.time() + limit_s,
        excluded=(),
    )


def _take_own(words: list[str]) -> tuple[dict[str, str], list[str]]:
    own: dict[str, str] = {}
    while words and words[0].partition("=")[0] in ("--gpu", "--step_s"):
        name, equals, value = words.pop(0).partition("=")
        if not equals and not words:
            raise ConfigError(f"{name} needs a value")
        own[name] = value if equals else words.pop(0)
    step_s = own.get("--step_s", "1")
    if not re.fullmatch(r"\d*\.?\d+", step_s) or float(step_s) == 0:
        raise ConfigError(f"--step_s {step_s}: expected seconds, such as 3.5")
    return own, words


def show(seen: Previewed, environ: Mapping[str, str]) -> None:
    """Prints what the job would do.

    Args:
        seen: What ``read`` returned.
        environ: The environment.

    Raises:
        ConfigError: The training would refuse to start.
    """
    root = Path(__file__).resolve().parents[2]
    # First, since a mistake of the user's ends it. Without the container, which may be out of reach from here.
    here = replace(seen.settings, container="")
    try:
        resolved = resolve(seen.job, here, root, seen.arguments) if seen.trains else None
        plan = _plan(seen, root) if seen.trains else []
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"no plan was made within {error.timeout:.0f} s: is the corpus within reach?") from None
    _show_request(seen)
    print(f"checks     {_CHECKS[seen.settings.preflight if seen.trains else 'full']}")
    if resolved is None:
        print(f"training   none: {seen.line.script} does not call supervise")
        return
    _show_launch(seen, root, resolved.run_dir, environ)
    where = f"for {seen.gpu}" if seen.gpu else "for the hardware of this machine; --gpu H100 plans for another"
    print(f"plan       ({where}{'; made outside of the container' if seen.settings.container else ''})")
    for line in plan:
        print(f"  {line}")
    print("requeues")
    for line in requeue_lines(seen.options, seen.limit_s, _training_s(seen, plan, resolved)):
        print(f"  {line}")


def _show_request(seen: Previewed) -> None:
    print("options of sbatch")
    for name, option in sorted(seen.options.items()):
        print(f"  --{name}{'=' if option.value else ''}{option.value}".ljust(44) + option.source)
    if "array" in seen.options:
        first = first_task(seen.options["array"].value)
        print(f"  a job array of {count_tasks(seen.options['array'].value)} tasks; task {first} is shown")
    print("settings")
    changed = [one for one in fields(Settings) if getattr(seen.settings, one.name) != one.default]
    for one in changed:
        print(f"  {one.name.upper()}={getattr(seen.settings, one.name)}".ljust(44) + f"{one.default!r} without it")
    if not changed:
        print("  all as by default")


def _show_launch(seen: Previewed, root: Path, run_dir: Path, environ: Mapping[str, str]) -> None:
    job, needed = seen.job, len(seen.job.nodes) - seen.settings.spare_nodes
    number = Journal(run_dir, job.job_id, 0).launches() + 1
    # Which GPUs are visible is told by Slurm on each node, not by the shell that submits.
    given = {
        name: value for name, value in job_environment(seen.options, environ).items() if name != "CUDA_VISIBLE_DEVICES"
    }
    launch = Launch(number, job, seen.settings, run_dir, root, job.nodes[:needed], seen.arguments)
    print(f"run        {run_dir}")
    print(f"batch      on {job.nodes[0]}: python3 -m scaletrain.launch.slurm.supervise {shlex.join(seen.arguments)}")
    print(f"step       {shlex.join(launch.command).replace('--cpus-per-task=0 ', '--cpus-per-task=ALL ')}")
    size = slots(job, seen.settings)
    for rank in dict.fromkeys((0, min(1, needed - 1), needed - 1)):
        first, last = rank * size, (rank + 1) * size - 1
        ranks = f"rank {first}" if first == last else f"ranks {first} to {last}"
        print(f"{job.nodes[rank]}   {ranks}, logs {launch.log_dir}/rank-*.log")
        added = added_variables(launch.plan, f"INTERFACE_TOWARDS_{job.nodes[0]}", given)
        if seen.limit_s is not None and "SCALETRAIN_JOB_END_TIME" in added:
            added["SCALETRAIN_JOB_END_TIME"] = f"START_PLUS_{seen.limit_s:.0f}_S"
        print(f"           {' '.join(f'{name}={shlex.quote(value)}' for name, value in added.items())}")
        print(f"           {shlex.join(launcher_command(launch.plan, rank, job.nodes[0], given))}")
    if needed < len(job.nodes):
        print(f"in reserve {', '.join(job.nodes[needed:])}")
    print(f"           the port follows from the job's number, for which {_PLACEHOLDER_JOB} stands here")


def _plan(seen: Previewed, root: Path) -> list[str]:
    """The plan of the run, as the training itself makes it, without the configuration above it."""
    ranks = (len(seen.job.nodes) - seen.settings.spare_nodes) * slots(seen.job, seen.settings)
    done = subprocess.run(
        [sys.executable, str(root / "scaletrain" / "train.py"), *seen.arguments, "--dry_run"],
        env=dict(os.environ)
        | {"WORLD_SIZE": str(ranks), "RANK": "0"}
        | ({} if seen.gpu is None else {"SCALETRAIN_PLAN_GPU": seen.gpu}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_PLAN_LIMIT_S,
    )
    if done.returncode != 0:
        raise ConfigError(done.stderr.strip().rpartition("error: ")[2])
    lines = done.stdout.splitlines()
    # Of the configuration every line holds a key and a colon, or an item of a list; the plan's are columns.
    return [
        line for line in lines if re.match(r"( {15}|[a-z' ]{1,14} {2,}|[a-z]+ +\d)\S", line) and ":" not in line[:14]
    ]


def _training_s(seen: Previewed, plan: Sequence[str], resolved: Resolved) -> tuple[float, str] | None:
    """Seconds of training that are left, and what they are computed from."""
    saved_step = Journal(resolved.run_dir, seen.job.job_id, 0).saved_step()
    left = max(0, resolved.max_steps - saved_step)
    steps = f"{left:,} steps" + (f" (step {saved_step:,} is saved)" if saved_step else "")
    if seen.step_s is not None:
        return seen.step_s * left, f"{steps} of {seen.step_s:g} s, as given by --step_s"
    measured = measured_step_s(resolved.run_dir)
    if measured is not None and seen.gpu is None:
        return measured * left, f"{steps} of {measured:.3g} s, the median of the run's last steps so far"
    planned = planned_s(plan)
    if planned is None:
        return None
    return planned[0] * left / resolved.max_steps, f"{steps} as planned, {planned[1]}"


def main(words: Sequence[str]) -> int:
    """Previews a job.

    Args:
        words: The command line of sbatch.

    Returns:
        0, or 2 for a user's mistake.
    """
    try:
        show(read(words, os.environ), os.environ)
    except ScaletrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
