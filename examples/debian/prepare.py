"""Makes examples of each task of the descriptions of Debian's packages: see README.md beside this file.

python -m examples.debian.prepare --out data/debian
"""

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import fire

from examples.debian.packages import MIRROR, SUITE, fetch_lists, read_packages, release_of
from examples.debian.records import FILES, make
from examples.splits import BUDGETS_PERCENT, table, within_budget, write_records
from scaletrain.errors import ConfigError
from tools.fire_tool import run_tool

# The files that are also written with a part of their training records.
WITH_BUDGETS = ("classification", "topics", "regression")


@dataclass(frozen=True)
class Request:
    """What was typed, each value of its type."""

    out: Path
    lists: Path | None
    mirror: str
    suite: str
    max_records: int | None


@fire.decorators.SetParseFn(str)  # type: ignore[untyped-decorator]  # a folder such as "2024_01" is text
def parse(
    *, out: str, lists: str | None = None, mirror: str = MIRROR, suite: str = SUITE, max_records: str | None = None
) -> Request:
    """Makes JSON lines of each task of the descriptions of Debian's packages, with fixed splits.

    Args:
        out: Folder of the files.
        lists: Folder of apt's lists that are there already; default: apt-get brings them to out/apt.
        mirror: Mirror of Debian's archive to bring them from.
        suite: Release of Debian to take.
        max_records: Keep this many records of each file, for a trial; default: all.
    """
    for name, text in (("out", out), ("lists", lists), ("mirror", mirror), ("suite", suite)):
        if text == "True":  # fire's for a flag alone
            raise ConfigError(f"--{name} needs a value")
    if max_records is not None and not (max_records.isdecimal() and int(max_records)):
        raise ConfigError(f"--max_records is {max_records!r}; give a whole number, at least 1.")
    return Request(Path(out), Path(lists) if lists else None, mirror, suite, int(max_records) if max_records else None)


def run(request: Request) -> None:
    """Writes the files, and prints what is in them."""
    request.out.mkdir(parents=True, exist_ok=True)
    lists = request.lists or fetch_lists(request.out / "apt", request.mirror, request.suite)
    packages = read_packages(lists, request.suite)
    families = len({package.family for package in packages})
    print(f"{release_of(lists, request.suite)}: {len(packages):,} packages of {families:,} families\n")
    counts: dict[str, Counter[str]] = {}
    copies: dict[str, int] = {}
    for name in FILES:
        records, copies[name] = make(name, packages)
        records = records[: request.max_records]
        budgets = {f"{name}_{percent}": percent for percent in BUDGETS_PERCENT if name in WITH_BUDGETS}
        for file, percent in {name: 100, **budgets}.items():
            chosen = list(within_budget(records, percent))
            write_records(request.out / f"{file}.jsonl", chosen)
            counts[file] = Counter(record["split"] for record in chosen)
    print(table(counts))
    print("\ncopies left out: " + ", ".join(f"{name} {count:,}" for name, count in copies.items()))


if __name__ == "__main__":
    sys.exit(run_tool("prepare.py", parse, run))
