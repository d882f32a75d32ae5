"""Makes conversations about Python's standard library of its source: see README.md beside this file.

python -m examples.stdlib.prepare --out data/stdlib
"""

import platform
import sys
import sysconfig
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import fire

from examples.splits import Record, apart, arrange, table, write_records
from examples.stdlib.functions import conversations, functions_of, read_modules, splits_of
from scaletrain.errors import ConfigError, DataError
from tools.fire_tool import run_tool


@dataclass(frozen=True)
class Request:
    """What was typed, each value of its type."""

    out: Path
    library: Path
    max_records: int | None


@fire.decorators.SetParseFn(str)  # type: ignore[untyped-decorator]  # a folder such as "2024_01" is text
def parse(*, out: str, library: str | None = None, max_records: str | None = None) -> Request:
    """Makes conversations for instruction tuning, and text to pretrain on, with the same splits by package.

    Args:
        out: Folder of the files.
        library: Folder of the standard library's source; default: that of this Python.
        max_records: Keep this many records of each file, for a trial; default: all.
    """
    for name, text in (("out", out), ("library", library)):
        if text == "True":  # fire's for a flag alone
            raise ConfigError(f"--{name} needs a value")
    if max_records is not None and not (max_records.isdecimal() and int(max_records)):
        raise ConfigError(f"--max_records is {max_records!r}; give a whole number, at least 1.")
    folder = Path(library or sysconfig.get_path("stdlib"))
    return Request(Path(out), folder, int(max_records) if max_records else None)


def run(request: Request) -> None:
    """Writes the files, and prints what is in them."""
    modules = read_modules(request.library)
    functions = [function for name, source in modules.items() for function in functions_of(name, source)]
    if not functions:
        raise DataError(f"--library {request.library} holds no Python function with a docstring.")
    print(f"Python {platform.python_version()}: {len(modules):,} modules, {len(functions):,} functions\n")
    splits = splits_of(modules, functions)
    chat = [
        {**record, "split": splits[function.package]} for function in functions for record in conversations(function)
    ]
    code = [{"text": source, "split": splits[name.split(".")[0]]} for name, source in modules.items() if source.strip()]
    request.out.mkdir(parents=True, exist_ok=True)
    counts: dict[str, Counter[str]] = {}
    text_of: dict[str, Callable[[Record], str]] = {
        # Two conversations with the same answer are copies.
        "chat": lambda record: record["messages"][-1]["content"],
        "code": itemgetter("text"),
    }
    for name, records in (("chat", chat), ("code", code)):
        kept, copies = arrange(records, text_of[name])
        kept = kept[: request.max_records]
        for file, written in (apart(name, kept) if name == "code" else {name: kept}).items():
            write_records(request.out / f"{file}.jsonl", written)
            counts[file] = Counter(record["split"] for record in written)
        print(f"{name}: {copies:,} copies left out")
    print(f"\n{table(counts)}")


if __name__ == "__main__":
    sys.exit(run_tool("prepare.py", parse, run))
