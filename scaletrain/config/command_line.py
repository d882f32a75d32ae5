"""Reads the command line of the entry points."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import fire

from scaletrain.config.fields import fields, unknown_key
from scaletrain.config.load import raise_all

_SWITCHES = ("dry_run", "help", "trust_checkpoint")
_LAUNCHER_FLAG = "local_rank"  # deepspeed's launcher adds it; the environment says the same
_OF_ENTRY_POINT = ("config", *_SWITCHES)


@dataclass(frozen=True)
class Command:
    """What was typed after the name of the program.

    Attributes:
        config: File given with ``--config``.
        overrides: Text of each key given, by dotted key, for ``load_config``.
        dry_run: Do everything but train.
        help: Print the help and nothing else.
        trust_checkpoint: Unpickle objects of any class in a checkpoint, which runs what its files say.
    """

    config: Path | None
    overrides: dict[str, str]
    dry_run: bool
    help: bool
    trust_checkpoint: bool = False


def parse(argv: Sequence[str]) -> Command:
    """Reads flags as ``--key value`` or ``--key=value``; where a key is given twice the last counts.

    Args:
        argv: Arguments without the program's name.

    Returns:
        The command. Values are texts; ``load_config`` reads them by the type of their field.

    Raises:
        ConfigError: Lists each argument that is no flag, no known key, or has no value.
    """
    problems: list[str] = []
    pairs = list(_pairs(argv, problems))
    for key, value in pairs:
        if key in _SWITCHES and value.lower() not in ("true", "false"):
            problems.append(f"--{key} = {value}: expected true or false, or nothing at all")
        if key == "config" and not value:
            problems.append("--config = '': expected the path of a file")
    raise_all(problems)
    flags = _through_fire(pairs)
    switches = {name: flags.pop(name, "false").lower() == "true" for name in _SWITCHES}
    config = flags.pop("config", None)
    flags.pop(_LAUNCHER_FLAG, None)
    return Command(Path(config).expanduser() if config else None, flags, **switches)


def _pairs(argv: Sequence[str], problems: list[str]) -> Iterator[tuple[str, str]]:
    """Brings every flag to a key and a text, before fire could take a value for a flag or drop an argument."""
    position = 0
    while position < len(argv):
        word = argv[position]
        position += 1
        if word == "-h":
            yield "help", "true"
            continue
        if not word.startswith("--") or word == "--":
            problems.append(f"{word}: not a flag; values are given as --key {word} or --key={word}")
            continue
        name, equals, value = word[2:].partition("=")
        key = name.replace("-", "_")
        following = argv[position] if position < len(argv) else None
        if not equals and following is not None and _is_value(following):
            value = following
            position += 1
        elif not equals and _is_switch(key):
            value = "true"
        elif not equals and _is_known(key):
            problems.append(f"--{key}: has no value; give --{key} VALUE, or --{key}=VALUE where it starts with --")
            continue
        if not _is_known(key):
            problems.append(f"--{name}: {unknown_key(key, [*_OF_ENTRY_POINT, *fields()])}")
            continue
        yield key, value


def _is_known(key: str) -> bool:
    return key in _OF_ENTRY_POINT or key == _LAUNCHER_FLAG or key in fields()


def _is_switch(key: str) -> bool:
    return key in _SWITCHES or (key in fields() and fields()[key].annotation is bool)


def _is_value(word: str) -> bool:
    return not word.startswith("--") and word != "-h"


def _through_fire(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    taken: dict[str, str] = {}

    @fire.decorators.SetParseFn(str)  # type: ignore[untyped-decorator]
    def take(**flags: str) -> None:
        taken.update(flags)

    # fire keeps the last of equal flags, and prints its own help only where a component raises.
    fire.Fire(take, command=[f"--{key}={value}" for key, value in pairs], name="train.py")
    return taken
