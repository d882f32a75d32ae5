"""Tells how a run stands, on one screen, whether it is under way or over.

python tools/status.py --run_dir runs/demo --watch
"""

import json
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import fire

from scaletrain.errors import ConfigError, ScaletrainError
from scaletrain.launch.slurm.commands import Slurm
from scaletrain.monitors.goodput_summary import summarize
from scaletrain.monitors.run_records import read_run
from scaletrain.monitors.status import Status, read_status
from scaletrain.monitors.status_text import status_lines

_REFRESH_S = 2.0
_SELDOM_S = 60.0
"""How often what is slow is looked at anew: Slurm's controller, and every line of the run's metrics."""
_ENTER, _LEAVE, _HOME, _CLEAR_REST = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l", "\x1b[H", "\x1b[J"


@dataclass(frozen=True)
class Request:
    """What was typed, each value of its type."""

    run_dir: Path
    watch: bool
    json: bool


@fire.decorators.SetParseFn(str)  # type: ignore[untyped-decorator]  # a folder such as "2024_01" is text
def parse(*, run_dir: str, watch: str = "false", json: str = "false") -> Request:
    """Tells how a run stands, on one screen.

    Args:
        run_dir: Folder of the run.
        watch: Shows it anew every two seconds, until Ctrl-C.
        json: Prints the same facts as JSON, once.
    """
    if run_dir == "True":  # fire's for a flag alone
        raise ConfigError("--run_dir needs a value")
    for name, text in (("watch", watch), ("json", json)):
        if text.lower() not in ("true", "false"):
            raise ConfigError(f"--{name} {text}: expected true or false, or nothing at all")
    return Request(Path(run_dir), watch.lower() == "true", json.lower() == "true")


def goodput_of(run_dir: Path) -> str:
    try:
        summary = summarize(read_run(run_dir))
    except ScaletrainError:
        return ""
    hours = summary.account.wall_us / 3.6e9
    return f"{100 * summary.account.goodput:.1f}% of {hours:.2f} h" if summary.account.steps else ""


def slurm_of(status: Status) -> Mapping[str, str]:
    job_id = status.job.get("job_id")
    return Slurm().show_job(str(job_id)) if job_id and shutil.which("scontrol") else {}


def screen(request: Request, goodput: str, slurm: Mapping[str, str]) -> list[str]:
    width = shutil.get_terminal_size((100, 24)).columns
    return status_lines(read_status(request.run_dir), slurm, goodput, width, time.time())


def watch(request: Request) -> None:
    looked_s = float("-inf")
    goodput, slurm = "", {}
    print(_ENTER, end="")
    try:
        while True:
            if time.monotonic() - looked_s > _SELDOM_S:
                goodput, slurm = goodput_of(request.run_dir), dict(slurm_of(read_status(request.run_dir)))
                looked_s = time.monotonic()
            lines = screen(request, goodput, slurm)
            print(_HOME + "".join(f"{line}\x1b[K\n" for line in lines) + _CLEAR_REST, end="", flush=True)
            time.sleep(_REFRESH_S)
    finally:
        print(_LEAVE, end="", flush=True)


def run(request: Request) -> None:
    status = read_status(request.run_dir)
    if request.json:
        print(json.dumps({**asdict(status), "goodput": goodput_of(request.run_dir)}, default=str))
    elif request.watch:
        watch(request)
    else:
        print("\n".join(screen(request, goodput_of(request.run_dir), slurm_of(status))))


def main() -> int:
    try:
        request = fire.Fire(parse, name="status.py", serialize=lambda _: None)
        if not isinstance(request, Request):
            raise ConfigError("a word stands where an option should; give all values as --name value")
        run(request)
    except ScaletrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, BrokenPipeError):
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
