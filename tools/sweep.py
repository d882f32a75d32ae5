"""Trains once for each line of a file, and compares the runs; each line holds arguments of its own.

python tools/sweep.py --file rates.txt --config mine.yaml
"""

import glob
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import compare
import fire
from fire_tool import run_tool

from scaletrain.errors import ConfigError
from scaletrain.hardware.host import describe_host
from scaletrain.launch.sweep import Sweep, divide, is_complete, plan_sweep


@dataclass(frozen=True)
class Request:
    """What was typed, each value of its type."""

    file: Path
    jobs: int
    sort: str
    training: Mapping[str, str]


@fire.decorators.SetParseFn(str)  # type: ignore[untyped-decorator]  # a folder such as "2024_01" is text
def parse(*, file: str = "True", jobs: str = "1", sort: str = "eval/loss", **training: str) -> Request:
    """Trains once for each line of a file, and compares the runs.

    Args:
        file: Text file with the arguments of one run in each line; the runs are runs/NAME/0, 1 and so on.
        jobs: Runs at the same time; the GPUs of this machine, or its cores, are shared out among them.
        sort: What to sort the table by, as tools/compare.py does.
        **training: Arguments of all runs, as for scaletrain/train.py; those in the file are stronger.
    """
    if "help" in training:
        sys.stdout.write(f"{__doc__}\n{parse.__doc__}")
        raise SystemExit(0)
    if file == "True":  # fire's for a flag alone
        raise ConfigError("--file needs a value: a text file with the arguments of one run in each line")
    for key, remedy in (("run_dir", "the runs go to runs/NAME of the file"), ("dry_run", "train.py plans one run")):
        if key in training:
            raise ConfigError(f"--{key} is no flag of a sweep: {remedy}")
    if not jobs.isdecimal() or int(jobs) < 1:
        raise ConfigError(f"--jobs {jobs}: expected a whole number, 1 or more")
    return Request(Path(file), int(jobs), sort, training)


def run(request: Request) -> int:
    folder = Path("runs") / request.file.stem
    runs = plan_sweep(request.file, folder, [f"--{key}={value}" for key, value in request.training.items()])
    host = describe_host()
    gpus = usable_gpus([str(gpu.index) for gpu in host.gpus])
    waiting = [one for one in runs if not is_complete(one)]
    say(f"{len(runs)} runs in {folder}, {len(runs) - len(waiting)} of them complete; tensorboard --logdir {folder}")
    sweep = Sweep(waiting, divide(request.jobs, host.cores, gpus), say)
    asked = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: (asked.append(number), sweep.ask_to_stop()))
    sweep.train()
    if any((folder / one.name / "metrics.jsonl").exists() for one in runs):
        say("")
        compare.run(compare.Request(glob.escape(str(folder)) + "/*", folder / "comparison.md", request.sort))
    left = [one.name for one in runs if not is_complete(one)]
    if left:
        say(f"not complete: {', '.join(left)}; the same command goes on with them")
    return (130 if asked else 1) if left else 0


def usable_gpus(there: Sequence[str]) -> list[str]:
    """Those that a training started here would use."""
    if not there or os.environ.get("DS_ACCELERATOR") == "cpu":
        return []
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    return list(there) if shown is None else [name for name in shown.split(",") if name]


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(run_tool("sweep.py", parse, run))
