"""Looks for a learning rate: trains through growing rates until the loss diverges, and draws the loss over them.

deepspeed tools/lr_find.py --config mine.yaml --out runs/rates
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import fire
from fire_tool import run_tool

from scaletrain import train
from scaletrain.errors import ConfigError
from scaletrain.launch.endings import let_go_of_streams
from scaletrain.monitors.jsonl_writer import read_metrics
from scaletrain.monitors.lr_range import read_range
from scaletrain.monitors.lr_range_text import range_chart, range_content, range_lines
from scaletrain.ranks import from_environment

_OWNED = (
    "run_dir",
    "optim.schedule",
    "optim.lr",
    "optim.min_lr_ratio",
    "optim.warmup_steps",
    "optim.decay_steps",
    "train.max_steps",
)


@dataclass(frozen=True)
class Request:
    """What was typed, each value of its type."""

    out: Path
    min_lr: float
    max_lr: float
    num_steps: int
    training: Mapping[str, str]


@fire.decorators.SetParseFn(str)  # type: ignore[untyped-decorator]  # a folder such as "2024_01" is text
def parse(
    *,
    out: str = "True",
    min_lr: str = "1e-7",
    max_lr: str = "10",
    num_steps: str = "100",
    **training: str,
) -> Request:
    """Looks for a learning rate.

    Args:
        out: Folder for lr_find.json and lr_find.svg; it is the run directory of the test.
        min_lr: Rate of the first step.
        max_lr: Rate of the last step.
        num_steps: Steps of the whole test.
        **training: All else as for scaletrain/train.py: the model, the data and the batch that the rate is for.
    """
    if "help" in training:
        sys.stdout.write(f"{__doc__}\n{parse.__doc__}")
        raise SystemExit(0)
    if out == "True":  # fire's for a flag alone
        raise ConfigError("--out needs a value: the folder for what is found")
    for key in _OWNED:
        if key in training:
            raise ConfigError(f"--{key} is what this tool sets; give --out, --min_lr, --max_lr and --num_steps")
    rates = {"min_lr": rate("min_lr", min_lr), "max_lr": rate("max_lr", max_lr)}
    if rates["min_lr"] >= rates["max_lr"]:
        raise ConfigError(f"--min_lr {min_lr} is not below --max_lr {max_lr}; the rate grows from the one to the other")
    if not num_steps.isdecimal() or int(num_steps) < 10:
        raise ConfigError(f"--num_steps {num_steps}: expected a whole number, 10 or more")
    return Request(Path(out), **rates, num_steps=int(num_steps), training=training)


def rate(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ConfigError(f"--{name} {text}: expected a learning rate, a number more than 0")
    return value


def training_flags(request: Request) -> dict[str, str]:
    """A run with this schedule, from the first rate to the last, that saves and evaluates nothing."""
    return {
        **request.training,
        "run_dir": str(request.out),
        "optim.schedule": "range_test",
        "optim.lr": repr(request.max_lr),
        "optim.min_lr_ratio": repr(request.min_lr / request.max_lr),
        "optim.warmup_steps": "0",
        "optim.decay_steps": str(request.num_steps - 1),
        "train.max_steps": str(request.num_steps),
        "eval.every_steps": "0",
        "eval.patience": "0",
        "eval.max_sequences": "1",
        "eval.max_texts": "1",
        "eval.prompts": "[]",
        "checkpoint.every_steps": "0",
        "checkpoint.keep_last": "0",
        "checkpoint.keep_every_steps": "0",
        "checkpoint.keep_best": "false",
        "checkpoint.local_dir": "none",
        "checkpoint.local_every_steps": "0",
        "stability.spike_zscore": "0",
    }


def run(request: Request) -> int:
    code = train.main([f"--{key}={value}" for key, value in training_flags(request).items()])
    if code or "dry_run" in request.training or not from_environment().is_main:
        return code
    found = read_range(read_metrics(request.out / "metrics.jsonl"), request.num_steps)
    (request.out / "lr_find.json").write_text(json.dumps(range_content(found), indent=1) + "\n")
    (request.out / "lr_find.svg").write_text(range_chart(found))
    print("\n".join(["", *range_lines(found), "", f"wrote {request.out / 'lr_find.json'} and lr_find.svg"]), flush=True)
    return 0


if __name__ == "__main__":
    code = run_tool("lr_find.py", parse, run)
    let_go_of_streams()
    sys.exit(code)
