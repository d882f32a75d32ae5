"""Makes examples of each task of the descriptions of Debian's packages: see README.md beside this file.

python -m examples.debian.prepare --out data/debian
"""

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import fire

from examples.debian.packages import MIRROR, SUITE, fetch_lists, read_packages, release_of
from examples.debian.records import FILES, MAX_PARAGRAPH_WORDS, deal_packages, longer_side, make
from examples.splits import BUDGETS_PERCENT, Record, apart, table, within_budget, write_records
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
    max_paragraph_words: int


@fire.decorators.SetParseFn(str)  # type: ignore[untyped-decorator]  # a folder such as "2024_01" is text
def parse(
    *,
    out: str,
    lists: str | None = None,
    mirror: str = MIRROR,
    suite: str = SUITE,
    max_records: str | None = None,
    max_paragraph_words: str = str(MAX_PARAGRAPH_WORDS),
) -> Request:
    """Makes JSON lines of each task of the descriptions of Debian's packages, with fixed splits.

    Args:
        out: Folder of the files.
        lists: Folder of apt's lists that are there already; default: apt-get brings them to out/apt.
        mirror: Mirror of Debian's archive to bring them from.
        suite: Release of Debian to take.
        max_records: Keep this many records of each file, for a trial; default: all.
        max_paragraph_words: Words of the longest paragraph, in either language, that is to be translated; at most 80.
    """
    for name, text in (("out", out), ("lists", lists), ("mirror", mirror), ("suite", suite)):
        if text == "True":  # fire's for a flag alone
            raise ConfigError(f"--{name} needs a value")
    limits = {"max_records": max_records, "max_paragraph_words": max_paragraph_words}
    for name, text in limits.items():
        if text is not None and not (text.isdecimal() and int(text)):
            raise ConfigError(f"--{name} is {text!r}; give a whole number, at least 1.")
    if int(max_paragraph_words) > MAX_PARAGRAPH_WORDS:
        raise ConfigError(f"--max_paragraph_words is {max_paragraph_words}; give at most {MAX_PARAGRAPH_WORDS}.")
    numbers = int(max_records) if max_records else None, int(max_paragraph_words)
    return Request(Path(out), Path(lists) if lists else None, mirror, suite, *numbers)


def run(request: Request) -> None:
    """Writes the files, and prints what is in them."""
    request.out.mkdir(parents=True, exist_ok=True)
    lists = request.lists or fetch_lists(request.out / "apt", request.mirror, request.suite)
    packages = read_packages(lists, request.suite)
    families = len({package.family for package in packages})
    print(f"{release_of(lists, request.suite)}: {len(packages):,} packages of {families:,} families\n")
    dealt = deal_packages(packages)
    counts: dict[str, Counter[str]] = {}
    copies: dict[str, int] = {}
    for name in FILES:
        records, copies[name] = make(name, dealt)
        if name.startswith("translation"):
            records = [record for record in records if longer_side(record) <= request.max_paragraph_words]
        for file, written in files_of(name, records[: request.max_records]).items():
            write_records(request.out / f"{file}.jsonl", written)
            counts[file] = Counter(record["split"] for record in written)
    print(table(counts))
    print("\ncopies left out: " + ", ".join(f"{name} {count:,}" for name, count in copies.items()))


def files_of(name: str, records: list[Record]) -> dict[str, list[Record]]:
    """The records of each file that is made of those of a task."""
    if name == "language_model":
        return apart(name, records)
    budgets = BUDGETS_PERCENT if name in WITH_BUDGETS else ()
    return {name: records, **{f"{name}_{percent}": list(within_budget(records, percent)) for percent in budgets}}


if __name__ == "__main__":
    sys.exit(run_tool("prepare.py", parse, run))
