"""Shows without a cluster what a job would do: ``python -m scaletrain.launch.preview -N 4 slurm/pretrain.sh ...``.

It takes the command line of sbatch. Two options of its own may stand before that: ``--gpu NAME``, which the time is
planned for where this machine has another one or none, and ``--step_s SECONDS``, the measured duration of a step.
"""

import math
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from scaletrain.errors import ConfigError, ScaletrainError
from scaletrain.launch.slurm.batch_options import (
    CommandLine,
    Option,
    count_tasks,
    read_command_line,
    read_environment,
    read_script,
    time_limit_s,
)
from scaletrain.launch.slurm.job import Job
from scaletrain.launch.slurm.launching import Launch
from scaletrain.launch.slurm.node import launcher_command
from scaletrain.launch.slurm.settings import Settings
from scaletrain.launch.slurm.steps import slots
from scaletrain.launch.slurm.supervise import first_training_argument, resolve

_START_S = 180.0
"""What is assumed to be lost at each start: checks, imports, loading of a checkpoint, compilation."""
_PLACEHOLDER_JOB = "1000"
_UNITS_S = {"seconds": 1.0, "minutes": 60.0, "hours": 3600.0, "days": 86400.0}


@dataclass(frozen=True)
class Previewed:
    """What a job would be.

    Attributes:
        line: The command line.
        options: All options that hold, by name.
        job: A job of that size, with invented nodes.
        settings: From the environment.
        arguments: The training's.
        gpu: The vendor's name of the GPU to plan for; None for this machine's.
        step_s: Duration of a step in seconds; None for the plan's.
    """

    line: CommandLine
    options: Mapping[str, Option]
    job: Job
    settings: Settings
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
    except OSError as error:
        raise ConfigError(f"{line.script}: {error.strerror}") from None
    options = {**read_script(text), **read_environment(environ), **line.options}
    settings = Settings.from_environment(environ)
    count = _nodes(options)
    if settings.spare_nodes >= count:
        raise ConfigError(f"SPARE_NODES={settings.spare_nodes} of {count} nodes leaves none to train on")
    nodes = tuple(f"node{number:04d}" for number in range(1, count + 1))
    gpus = 0 if environ.get("DS_ACCELERATOR") == "cpu" else _gpus(options)
    limit_s = time_limit_s(options["time"].value) if "time" in options else None
    job = Job(
        job_id=_PLACEHOLDER_JOB,
        name=options["job-name"].value if "job-name" in options else Path(line.script).name,
        restarts=0,
        nodes=nodes,
        addresses={node: node for node in nodes},
        gpus=gpus,
        cpus=os.cpu_count() or 1,
        end_s=None if limit_s is None else time.time() + limit_s,
        excluded=(),
        log="",
    )
    skipped = first_training_argument(Path(line.script).name)
    step_s = float(own["--step_s"]) if "--step_s" in own else None
    return Previewed(line, options, job, settings, line.arguments[skipped:], own.get("--gpu"), step_s)


def _take_own(words: list[str]) -> tuple[dict[str, str], list[str]]:
    own: dict[str, str] = {}
    while words and words[0].partition("=")[0] in ("--gpu", "--step_s"):
        name, equals, value = words.pop(0).partition("=")
        if not equals and not words:
            raise ConfigError(f"{name} needs a value")
        own[name] = value if equals else words.pop(0)
    if not re.fullmatch(r"\d*\.?\d+", own.get("--step_s", "1")):
        raise ConfigError(f"--step_s {own['--step_s']}: expected seconds, such as 3.5")
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
    # First, since a mistake of the user's ends it.
    resolved = resolve(seen.job, seen.settings, root, seen.arguments) if _trains(seen) else None
    plan = _plan(seen, root)
    print("options of sbatch")
    for name, option in sorted(seen.options.items()):
        print(f"  --{name}{'=' if option.value else ''}{option.value}".ljust(44) + option.source)
    if "array" in seen.options:
        print(f"  a job array of {count_tasks(seen.options['array'].value)} tasks, each as below")
    print("settings")
    for one in fields(Settings):
        value = getattr(seen.settings, one.name)
        print(f"  {one.name.upper()}={value}".ljust(44) + ("" if value == one.default else "from the environment"))
    if resolved is None:
        return
    run_dir = resolved.run_dir
    needed = len(seen.job.nodes) - seen.settings.spare_nodes
    print(f"run        {run_dir}")
    print(f"batch      on {seen.job.nodes[0]}: python3 -m scaletrain.launch.slurm.supervise {_quoted(seen.arguments)}")
    checks = {
        "full": "each node, then the all-reduce between them",
        "nodes": "each node, not the connections between them",
        "off": "none (PREFLIGHT=off)",
    }
    print(f"checks     {checks[seen.settings.preflight]}")
    _show_launch(seen, root, run_dir, needed, environ)
    print("plan")
    for line in plan:
        print(f"  {line}")
    print("requeues")
    for line in _requeues(seen, plan, resolved.max_steps):
        print(f"  {line}")


def _show_launch(seen: Previewed, root: Path, run_dir: Path, needed: int, environ: Mapping[str, str]) -> None:
    job = seen.job
    launch = Launch(1, job, seen.settings, run_dir, root, job.nodes[:needed], seen.arguments)
    print(f"step       {_quoted(launch.command)}")
    shown = dict.fromkeys((0, min(1, needed - 1), needed - 1))
    for rank in shown:
        ranks = range(rank * slots(job, seen.settings), (rank + 1) * slots(job, seen.settings))
        print(f"{job.nodes[rank]}   ranks {ranks[0]} to {ranks[-1]}, logs {launch.log_dir}/rank-*.log")
        print(f"           {_quoted(launcher_command(launch.plan, rank, job.nodes[0], environ))}")
    if needed < len(job.nodes):
        print(f"in reserve {', '.join(job.nodes[needed:])}")


def _plan(seen: Previewed, root: Path) -> list[str]:
    """The plan of the run, as the training itself makes it, without the configuration above it."""
    if not _trains(seen):
        return []
    ranks = (len(seen.job.nodes) - seen.settings.spare_nodes) * slots(seen.job, seen.settings)
    done = subprocess.run(
        [sys.executable, str(root / "scaletrain" / "train.py"), *seen.arguments, "--dry_run"],
        env=dict(os.environ)
        | {"WORLD_SIZE": str(ranks), "RANK": "0"}
        | ({} if seen.gpu is None else {"SCALETRAIN_PLAN_GPU": seen.gpu}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise ConfigError(done.stderr.strip().rpartition("error: ")[2])
    lines = done.stdout.splitlines()
    # Of the configuration every line holds a key and a colon, or an item of a list; the plan's are columns.
    return [
        line for line in lines if re.match(r"( {15}|[a-z' ]{1,14} {2,}|[a-z]+ +\d)\S", line) and ":" not in line[:14]
    ]


def _requeues(seen: Previewed, plan: Sequence[str], max_steps: int) -> list[str]:
    limit_s = time_limit_s(seen.options["time"].value) if "time" in seen.options else None
    if limit_s is None:
        return ["none by the time limit: no --time is given, so that the partition's holds"]
    total_s = _planned_s(plan) if seen.step_s is None else seen.step_s * max_steps
    if total_s is None:
        return ["unknown: the plan has no time, because the GPU is not known here; give --gpu H100 or --step_s 3.5"]
    lead_s = _lead_s(seen.options)
    usable_s = limit_s - _START_S - lead_s
    if usable_s <= 0:
        return [f"--time is too short: {_START_S:.0f} s to start and {lead_s:.0f} s to save leave nothing to train"]
    expected = max(0, math.ceil(total_s / usable_s) - 1)
    return [
        f"{expected}: {total_s / 3600:.1f} h of training, {usable_s / 3600:.1f} h in each start",
        f"(of {limit_s / 3600:.1f} h, without {_START_S:.0f} s to start and {lead_s:.0f} s to save)",
    ]


def _planned_s(plan: Sequence[str]) -> float | None:
    for line in plan:
        found = re.match(r"time +([\d.,]+) (seconds|minutes|hours|days)", line)
        if found:
            return float(found[1].replace(",", "")) * _UNITS_S[found[2]]
    return None


def _lead_s(options: Mapping[str, Option]) -> float:
    found = re.search(r"@(\d+)$", options["signal"].value) if "signal" in options else None
    return float(found[1]) if found else 60.0  # sbatch's default


def _nodes(options: Mapping[str, Option]) -> int:
    text = options["nodes"].value if "nodes" in options else "1"
    found = re.fullmatch(r"(\d+)(?:-\d+)?", text)
    if found is None or int(found[1]) < 1:
        raise ConfigError(f"--nodes {text} is no number of nodes")
    return int(found[1])


def _gpus(options: Mapping[str, Option]) -> int:
    for name in ("gpus-per-node", "gres"):
        found = re.search(r"(\d+)$", options[name].value) if name in options else None
        if found:
            return int(found[1])
    return 0


def _trains(seen: Previewed) -> bool:
    return Path(seen.line.script).name != "healthcheck.sh"


def _quoted(words: Sequence[str]) -> str:
    return shlex.join(words)


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
