"""Tells where the time of a run went, over all its attempts, and which checkpoint interval its figures ask for.

python tools/report.py --run_dir runs/demo --html report.html
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import fire
from fire_tool import run_tool

from scaletrain.errors import ConfigError
from scaletrain.monitors.goodput_page import page
from scaletrain.monitors.goodput_summary import summarize
from scaletrain.monitors.goodput_text import report_lines
from scaletrain.monitors.run_records import read_run


@dataclass(frozen=True)
class Request:
    """What was typed, each value of its type."""

    run_dir: Path
    html: Path | None


@fire.decorators.SetParseFn(str)  # type: ignore[untyped-decorator]  # a folder such as "2024_01" is text
def parse(*, run_dir: str, html: str | None = None) -> Request:
    """Tells where the time of a run went, and which checkpoint interval its figures ask for.

    Args:
        run_dir: Folder of the run; the run may be under way.
        html: File to write the report to as a page with plots, besides printing it.
    """
    for name, text in (("run_dir", run_dir), ("html", html)):
        if text == "True":  # fire's for a flag alone
            raise ConfigError(f"--{name} needs a value")
    return Request(Path(run_dir), None if html is None else Path(html))


def run(request: Request) -> None:
    records = read_run(request.run_dir)
    summary = summarize(records)
    title = request.run_dir.absolute().name
    print("\n".join(report_lines(summary, title)))
    if request.html is not None:
        try:
            request.html.write_text(page(summary, records.lines, title), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--html {request.html} cannot be written: {error.strerror or error}") from None
        print(f"\nwrote {request.html}")


if __name__ == "__main__":
    sys.exit(run_tool("report.py", parse, run))
