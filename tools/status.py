"""Tells on one screen how a run stands, whether it is under way or over, and what to look at.

python tools/status.py --run_dir runs/demo --watch
"""

import json
import shutil
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import fire
from rich.console import Console
from rich.text import Text

from scaletrain.errors import ConfigError, ScaletrainError
from scaletrain.launch.squeue import ask_squeue
from scaletrain.monitors.status import Status
from scaletrain.monitors.status_records import observe
from scaletrain.monitors.status_text import COLUMNS, LINES, status_lines
from scaletrain.monitors.status_warnings import status_of

_REFRESH_S = 2.0
_STYLES = {"good": "green", "warn": "yellow", "bad": "bold red", "": ""}


@dataclass(frozen=True)
class Request:
    """What was typed, each value of its type."""

    run_dir: Path
    watch: bool
    json: bool


@fire.decorators.SetParseFn(str)  # type: ignore[untyped-decorator]  # a folder such as "2024_01" is text
def parse(*, run_dir: str, watch: str = "False", json: str = "False") -> Request:
    """Tells on one screen how a run stands, and what to look at.

    Args:
        run_dir: Folder of the run; it may be under way, over, or not have trained yet.
        watch: Refresh the screen every two seconds, until Ctrl-C.
        json: Print all facts as one JSON object instead.
    """
    if run_dir == "True":  # fire's for a flag alone
        raise ConfigError("--run_dir needs a value")
    flags = {}
    for name, text in (("watch", watch), ("json", json)):
        if text.lower() not in ("true", "false"):
            raise ConfigError(f"--{name} {text}: expected nothing behind it, or true or false")
        flags[name] = text.lower() == "true"
    if flags["watch"] and (flags["json"] or not sys.stdout.isatty()):
        raise ConfigError("--watch needs a terminal, and goes without --json; leave --watch out to print once")
    return Request(Path(run_dir), flags["watch"], flags["json"])


def look(run_dir: Path) -> Status:
    observed = observe(run_dir)
    if observed.job_id is not None:
        observed = replace(observed, queued=ask_squeue(observed.job_id))
    return status_of(observed)


def screen(status: Status, columns: int, lines: int = LINES) -> Text:
    shown = status_lines(status, min(columns, COLUMNS), min(lines, LINES))
    return Text("\n").join(Text(line.text, _STYLES[line.mood]) for line in shown)


def watch(run_dir: Path, console: Console) -> None:
    with console.screen() as shown:
        while True:
            size = shutil.get_terminal_size()
            shown.update(screen(look(run_dir), size.columns, size.lines))
            time.sleep(_REFRESH_S)


def run(request: Request) -> None:
    if request.json:
        print(json.dumps(asdict(look(request.run_dir))))
        return
    columns = shutil.get_terminal_size((COLUMNS, LINES)).columns if sys.stdout.isatty() else COLUMNS
    console = Console(width=columns, highlight=False)
    if request.watch:
        watch(request.run_dir, console)
    else:
        console.print(screen(look(request.run_dir), columns), soft_wrap=True)


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
