"""Compares runs in one table: what differs between their settings, and how they came out.

python tools/compare.py --runs 'runs/rates/*' --out runs/rates/comparison.md
"""

import glob
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import fire
from fire_tool import run_tool

from scaletrain.errors import ConfigError
from scaletrain.files import replace_text
from scaletrain.monitors import names
from scaletrain.monitors.comparison import compare
from scaletrain.monitors.comparison_text import comparison_notes, comparison_table, markdown_lines, text_lines


@dataclass(frozen=True)
class Request:
    """What was typed, each value of its type."""

    runs: str
    out: Path | None
    sort: str


@fire.decorators.SetParseFn(str)  # type: ignore[untyped-decorator]  # a folder such as "2024_01" is text
def parse(*, runs: str, out: str | None = None, sort: str = names.EVAL_LOSS) -> Request:
    """Compares runs in one table.

    Args:
        runs: Pattern of their folders, in quotes, or several separated by commas.
        out: File to write the table to as Markdown, besides printing it.
        sort: What to sort by: eval/loss, train/loss, perf/tokens_per_s, perf/mfu, goodput, step or name.
    """
    for name, text in (("runs", runs), ("out", out), ("sort", sort)):
        if text == "True":  # fire's for a flag alone
            raise ConfigError(f"--{name} needs a value")
    return Request(runs, None if out is None else Path(out), sort)


def run(request: Request) -> None:
    found = [Path(path) for pattern in request.runs.split(",") for path in sorted(glob.glob(pattern))]
    folders = [folder for folder in dict.fromkeys(found) if folder.is_dir()]
    if not folders:
        raise ConfigError(f"--runs {request.runs} matches no folder; give a pattern in quotes, such as 'runs/sweep/*'")
    comparison = compare(folders, request.sort)
    rows, notes = comparison_table(comparison), comparison_notes(comparison)
    curves = f"tensorboard --logdir {shlex.quote(common_folder(folders))}"
    print("\n".join([*text_lines(rows), "", *notes, f"Curves: {curves}"]))
    if request.out is not None:
        title = f"# Comparison of {len(comparison.runs)} runs"
        write(request.out, "\n\n".join([title, "\n".join(markdown_lines(rows)), *notes, f"Curves: `{curves}`"]) + "\n")
        print(f"\nwrote {request.out}")


def common_folder(folders: Sequence[Path]) -> str:
    parents = [folder.parent for folder in folders]
    if len({parent.is_absolute() for parent in parents}) > 1:
        parents = [parent.absolute() for parent in parents]
    return os.path.commonpath(parents) or "."


def write(path: Path, text: str) -> None:
    """In one piece: jobs of an array may end at the same time."""
    try:
        replace_text(path, text)
    except OSError as error:
        raise ConfigError(f"--out {path} cannot be written: {error.strerror or error}") from None


if __name__ == "__main__":
    sys.exit(run_tool("compare.py", parse, run))
