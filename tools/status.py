"""Tells on one screen how a run stands, whether it is under way or over, and what to look at.

python tools/status.py --run_dir runs/demo --watch
"""

import json
import shutil
import signal
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import fire
from fire_tool import run_tool
from rich.console import Console
from rich.text import Text

from scaletrain.errors import ConfigError
from scaletrain.launch.squeue import Queued, ask_squeue
from scaletrain.monitors.status import Status
from scaletrain.monitors.status_records import observe
from scaletrain.monitors.status_text import COLUMNS, LINES, status_lines
from scaletrain.monitors.status_warnings import status_of

_REFRESH_S = 2.0
_ASK_S = 30.0
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


class Watcher:
    """Looks at a run again and again; Slurm's controller, which serves everybody, is asked less often."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._asked_s = float("-inf")
        self._queued: Queued | None = None

    def look(self) -> Status:
        observed = observe(self._run_dir)
        if observed.job_id is not None and time.monotonic() - self._asked_s > _ASK_S:
            self._queued, self._asked_s = ask_squeue(observed.job_id), time.monotonic()
        return status_of(replace(observed, queued=self._queued if observed.job_id else None))


def screen(status: Status, columns: int, lines: int = LINES) -> Text:
    shown = status_lines(status, min(columns, COLUMNS), min(lines, LINES))
    return Text("\n").join(Text(line.text, _STYLES[line.mood]) for line in shown)


def watch(watcher: Watcher, console: Console) -> None:
    # As after Ctrl-C, the terminal is given back as it was.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with console.screen() as shown:
        while True:
            size = shutil.get_terminal_size()
            shown.update(screen(watcher.look(), size.columns, size.lines))
            time.sleep(_REFRESH_S)


def run(request: Request) -> None:
    watcher = Watcher(request.run_dir)
    if request.json:
        print(json.dumps(asdict(watcher.look())))
    elif request.watch:
        watch(watcher, Console(highlight=False))
    else:
        columns = shutil.get_terminal_size((COLUMNS, LINES)).columns if sys.stdout.isatty() else COLUMNS
        Console(highlight=False).print(screen(watcher.look(), columns), soft_wrap=True)


if __name__ == "__main__":
    sys.exit(run_tool("status.py", parse, run))
