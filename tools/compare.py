"""Compares runs in one table: what differs between their settings, and how they came out.

python tools/compare.py --runs 'runs/rates/*' --out runs/rates/comparison.md
"""

import glob
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import fire

from scaletrain.errors import ConfigError, ScaletrainError
from scaletrain.monitors.comparison import Comparison, compare, markdown, table


@dataclass(frozen=True)
class Request:
    """What was typed, each value of its type."""

    runs: str
    out: Path | None


@fire.decorators.SetParseFn(str)  # type: ignore[untyped-decorator]  # a folder such as "2024_01" is text
def parse(*, runs: str, out: str | None = None) -> Request:
    """Compares runs in one table.

    Args:
        runs: Pattern of their folders, in quotes, or several separated by commas.
        out: File to write the table to as Markdown, besides printing it.
    """
    for name, text in (("runs", runs), ("out", out)):
        if text == "True":  # fire's for a flag alone
            raise ConfigError(f"--{name} needs a value")
    return Request(runs, None if out is None else Path(out))


def run(request: Request) -> None:
    folders = [Path(path) for pattern in request.runs.split(",") for path in sorted(glob.glob(pattern))]
    found = compare([folder for folder in folders if folder.is_dir()])
    rows = table(found)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"\n{note(found)}")
    parents = {str(folder.parent) for folder in folders}
    watch = f"tensorboard --logdir {parents.pop()}" if len(parents) == 1 else ""
    if watch:
        print(f"curves: {watch}")
    if request.out is not None:
        text = f"# Comparison of {len(found.runs)} runs\n\n{markdown(rows)}\n{note(found)}\n"
        write(request.out, text + (f"\nCurves: `{watch}`\n" if watch else ""))


def note(found: Comparison) -> str:
    return "loss: mean of the last hundredth of the steps, of ten at least. " + (
        f"All runs have done step {found.common_step:,}." if found.common_step else "Not all runs have trained."
    )


def write(path: Path, text: str) -> None:
    """In one piece: several jobs of an array may end at the same time."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, path)
    except OSError as error:
        raise ConfigError(f"--out {path} cannot be written: {error.strerror or error}") from None


def main() -> int:
    try:
        request = fire.Fire(parse, name="compare.py", serialize=lambda _: None)
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
