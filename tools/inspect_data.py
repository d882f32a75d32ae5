"""Tells which documents a run's steps were made of, and in which steps a document was and will be used.

python tools/inspect_data.py --run_dir runs/demo --step 100
"""

import sys
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import fire
from fire_tool import run_tool

from scaletrain.errors import ConfigError

if TYPE_CHECKING:
    from scaletrain.training.data_history import DataHistory


@dataclass(frozen=True)
class Request:
    """What was typed, each value of its type; one of step, key and verify is given."""

    run_dir: Path
    step: int | None
    key: str | None
    verify: range | None
    characters: int


@fire.decorators.SetParseFn(str)  # type: ignore[untyped-decorator]  # a key such as "0000000012" is text
def parse(
    *,
    run_dir: str,
    step: str | None = None,
    key: str | None = None,
    verify: str | None = None,
    characters: str = "200",
) -> Request:
    """Tells which documents a run's steps were made of, and in which steps a document was and will be used.

    Args:
        run_dir: Folder of the run.
        step: Lists the documents of this step, as metrics.jsonl numbers it, with their text.
        key: Lists the steps in which the document with this key was and will be used.
        verify: Computes the checksums of steps anew and compares them with metrics.jsonl: FIRST:BEHIND_THE_LAST.
        characters: Characters of each piece of text that --step prints; 0 prints none.
    """
    asked = [name for name, value in (("--step", step), ("--key", key), ("--verify", verify)) if value is not None]
    if len(asked) != 1:
        raise ConfigError(f"one of --step, --key and --verify must be given, not {' and '.join(asked) or 'none'}")
    check_value("key", key)
    return Request(
        Path(run_dir),
        None if step is None else whole_number("step", step),
        key,
        None if verify is None else steps_of(verify),
        whole_number("characters", characters),
    )


def check_value(name: str, text: str | None) -> None:
    if text == "True":  # fire's for a flag alone
        raise ConfigError(f"--{name} needs a value")


def whole_number(name: str, text: str) -> int:
    check_value(name, text)
    if not text.isdecimal():
        raise ConfigError(f"--{name} {text} is not a whole number; give one, such as --{name} 100")
    return int(text)


def steps_of(text: str) -> range:
    check_value("verify", text)
    first, colon, behind = text.partition(":")
    if not (colon and first.isdecimal() and behind.isdecimal()):
        raise ConfigError(f"--verify {text} is no range of steps; give the first and the one behind the last: 1:101")
    if int(first) >= int(behind):
        raise ConfigError(f"--verify {text} holds no step; give the first and the one behind the last: 1:101")
    return range(int(first), int(behind))


def run(request: Request) -> int:
    # Imported here, so that --help and a misspelt option are answered before torch is loaded.
    from scaletrain.training.data_history import DataHistory

    history = DataHistory.open(request.run_dir)
    if request.step is not None:
        print_step(history, request.step, request.characters)
    elif request.key is not None:
        for use in sorted(history.uses(request.key)):
            when = "used" if use.is_past else "will be used"
            print(
                f"{when} in step {use.step}, sequence {use.sequence}: tokens {use.start}:{use.stop} of "
                f"{use.source} {use.shard}"
            )
    elif request.verify is not None:
        return verify(history, request.verify)
    return 0


def print_step(history: "DataHistory", step: int, characters: int) -> None:
    sequences = history.sequences(step)
    done = "" if step <= len(history.ends) else ", to come"
    print(f"step {step}{done}: sequences {sequences.start} to {sequences.stop - 1}, of {history.world_size} ranks")
    if not done and not all(found.recorded == found.computed for found in history.verify(range(step, step + 1))):
        print("the data is not what it was in the run: its checksum is another one")
    for (sequence, rank), pieces in groupby(history.pieces(step), key=lambda piece: (piece.sequence, piece.rank)):
        print(f"sequence {sequence}, rank {rank}")
        for piece in pieces:
            tokens = f"tokens {piece.start}:{piece.stop}" if piece.stop else None
            left_out = "left out" if piece.text is None else None
            print(" ", *filter(None, (piece.source, piece.shard, piece.key, tokens, left_out)))
            if piece.text and characters:
                print(f"    {piece.text[:characters]!r}")


def verify(history: "DataHistory", steps: range) -> int:
    wrong = 0
    for found in history.verify(steps):
        if found.recorded != found.computed:
            wrong += 1
            print(f"step {found.step}: the run recorded {found.recorded}, the data gives {found.computed}")
    print(f"{len(steps) - wrong} of {len(steps)} steps are as recorded")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(run_tool("inspect_data.py", parse, run))
