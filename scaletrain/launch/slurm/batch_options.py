"""Options of sbatch as a script and a command line give them, as far as a preview must understand them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scaletrain.errors import ConfigError
from scaletrain.launch.slurm.option_names import LONG, NAMES, OPTIONAL_VALUE, VARIABLES, WITHOUT_VALUE

_MINUTE, _HOUR, _DAY = 60, 3600, 86400


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        value: Its value; empty where it takes none.
        source: Where it was given, for people.
    """

    value: str
    source: str


@dataclass(frozen=True)
class CommandLine:
    """A command line of sbatch, without the word sbatch.

    Attributes:
        options: By long name.
        script: The script.
        arguments: All that follows it.
    """

    options: Mapping[str, Option]
    script: str
    arguments: tuple[str, ...]


def read_command_line(words: Sequence[str]) -> CommandLine:
    """Splits a command line of sbatch.

    Args:
        words: Options, the script, its arguments.

    Raises:
        ConfigError: There is no script, or an option lacks its value.
    """
    options, rest = _take_options(list(words), "command line")
    if not rest:
        raise ConfigError(
            "no script is given; type what you would give to sbatch: -N 4 slurm/pretrain.sh --config FILE"
        )
    return CommandLine(options, rest[0], tuple(rest[1:]))


def read_script(text: str) -> dict[str, Option]:
    """Reads the ``#SBATCH`` lines of a script.

    Args:
        text: The script.

    Returns:
        Its options by long name; later lines count.

    Raises:
        ConfigError: sbatch would refuse the script, a line holds a shell variable, which sbatch does not expand, or
            stands below the first command, where sbatch does not look.
    """
    if not text.startswith("#!"):
        raise ConfigError("the first line must name an interpreter, such as #!/usr/bin/env bash: sbatch asks for it")
    if "\r\n" in text:
        raise ConfigError("lines end as in DOS (\\r\\n), which sbatch refuses; run dos2unix on the script")
    options: dict[str, Option] = {}
    is_below = False
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith("#SBATCH"):
            source = f"line {number}"
            if is_below:
                raise ConfigError(f"{source}: {line}: sbatch reads no option below the first command; move it up")
            words = _split(line.removeprefix("#SBATCH"), f"{source}: {line}")
            if any("$" in word or "`" in word for word in words):
                raise ConfigError(f"{source}: {line}: sbatch expands no variable here; write the value itself")
            found, rest = _take_options(words, source)
            if rest:
                raise ConfigError(f"{source}: {line}: {rest[0]} is no option")
            options = merge(options, found)
        elif line.strip() and not line.lstrip().startswith("#"):
            is_below = True
    return options


def read_environment(environ: Mapping[str, str]) -> dict[str, Option]:
    """Options that sbatch takes from variables such as SBATCH_PARTITION; between those of script and command line."""
    found = {}
    for variable, name in VARIABLES.items():
        if variable in environ:
            found[name] = Option("" if name in WITHOUT_VALUE else environ[variable], variable)
    return found


def merge(*layers: Mapping[str, Option]) -> dict[str, Option]:
    """All options that hold.

    Args:
        layers: Options of the script, of the environment and of the command line: later ones count.
    """
    found: dict[str, Option] = {}
    for layer in layers:
        for name, option in layer.items():
            found.pop({"requeue": "no-requeue", "no-requeue": "requeue"}.get(name, ""), None)
            found[name] = option
    return found


def job_environment(options: Mapping[str, Option], environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that a job is given of those of sbatch: all of them, unless ``--export`` says otherwise.

    Args:
        options: The job's, by long name.
        environ: The environment of sbatch.
    """
    if "export" not in options:
        return dict(environ)
    found: dict[str, str] = {}
    for word in options["export"].value.split(","):
        name, equals, value = word.partition("=")
        if word == "ALL":
            found = dict(environ) | found
        elif equals:
            found[name] = value
        elif name in environ:
            found[name] = environ[name]
    return found


def time_limit_s(text: str) -> float | None:
    """A time limit in seconds.

    Args:
        text: minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes or
            days-hours:minutes:seconds, as sbatch takes it.

    Returns:
        Seconds; None for no limit.

    Raises:
        ConfigError: It is none of these.
    """
    if text.upper() in ("INFINITE", "UNLIMITED", "0", "-1"):
        return None
    days, dash, clock = text.rpartition("-")
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", text):
        raise ConfigError(f"--time {text} is no time; give minutes, hours:minutes:seconds or days-hours")
    parts = [int(part) for part in clock.split(":")]
    by_count = {1: (_MINUTE,), 2: (_MINUTE, 1), 3: (_HOUR, _MINUTE, 1)}
    units = (_HOUR, _MINUTE, 1) if dash else by_count[len(parts)]
    seconds = sum(part * unit for part, unit in zip(parts, units, strict=False))
    return float(seconds + (int(days) * _DAY if dash else 0))


def count_tasks(array: str) -> int:
    """Tasks of a job array such as ``0-7``, ``1,3,5`` or ``0-15:4%2``."""
    return len(_tasks(array))


def first_task(array: str) -> int:
    """Smallest index of a job array."""
    return min(_tasks(array))


def _tasks(array: str) -> set[int]:
    found: set[int] = set()
    for part in array.partition("%")[0].split(","):
        span = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part.strip())
        if span is None or int(span[3] or 1) < 1 or int(span[2] or span[1]) < int(span[1]):
            raise ConfigError(f"--array {array} is no list of tasks; give it as 0-7 or 1,3,5")
        found |= set(range(int(span[1]), int(span[2] or span[1]) + 1, int(span[3] or 1)))
    return found


def count_nodes(options: Mapping[str, Option]) -> int:
    """Nodes of a job; of a range such as ``2-4`` the smallest number.

    Args:
        options: By long name.

    Raises:
        ConfigError: It is no number of nodes.
    """
    text = options["nodes"].value if "nodes" in options else "1"
    found = re.fullmatch(r"(\d+)(?:-\d+)?", text)
    if found is None or int(found[1]) < 1:
        raise ConfigError(f"--nodes {text} is no number of nodes; give it as 4 or 2-4")
    return int(found[1])


def gpus_per_node(options: Mapping[str, Option]) -> int:
    """GPUs that a job gets on each node, by whichever option asks for them; 0 where none does.

    Args:
        options: By long name.

    Raises:
        ConfigError: ``--gpus`` does not divide among the nodes.
    """
    if "gpus-per-node" in options:
        return _sum_by_type(options["gpus-per-node"].value)
    if "gpus" in options:
        gpus, nodes = _sum_by_type(options["gpus"].value), count_nodes(options)
        if gpus % nodes:
            raise ConfigError(f"--gpus={gpus} on {nodes} nodes: ranks are the same on each; give --gpus-per-node")
        return gpus // nodes
    asked = options["gres"].value.split(",") if "gres" in options else []
    return sum(_count(one) for one in asked if one.split(":")[0].removeprefix("gres/") == "gpu")


def _sum_by_type(text: str) -> int:
    """The number in ``8``, ``h100:8`` or ``a100:2,h100:4``."""
    return sum(_count(one) for one in text.split(","))


def _count(text: str) -> int:
    last = text.split("(")[0].rpartition(":")[2]
    return int(last) if last.isdigit() else 1


def signal_lead_s(options: Mapping[str, Option]) -> float:
    """Seconds before the time limit at which a job is told: those of ``--signal``, else sbatch's 60."""
    found = re.search(r"@(\d+)$", options["signal"].value) if "signal" in options else None
    return float(found[1]) if found else 60.0


def _split(text: str, where: str) -> list[str]:
    """Words of a line as sbatch splits it.

    That is not quite a shell's way: a backslash counts in both kinds of quotes, and does not hold words together.
    """
    words, word, quote, is_escaped = [], "", "", False
    for letter in text:
        if letter.isspace() and not quote:
            words.append(word)
            word, is_escaped = "", False
        elif is_escaped:
            word, is_escaped = word + letter, False
        elif letter == "\\":
            is_escaped = True
        elif letter == quote or (not quote and letter in "'\""):
            quote = "" if quote else letter
        elif letter == "#" and not quote:
            break
        else:
            word += letter
    if quote:
        raise ConfigError(f"{where}: a quotation mark is not closed")
    return [word for word in (*words, word) if word]


def _take_options(words: list[str], source: str) -> tuple[dict[str, Option], list[str]]:
    """Takes options off the front; the rest begins with what is none."""
    found: dict[str, Option] = {}
    while words and words[0].startswith("-") and words[0] != "-":
        word = words.pop(0)
        if word == "--":
            break
        taken = _take_long(word, words, source) if word.startswith("--") else _take_short(word, words, source)
        found = merge(found, {name: Option(value, source) for name, value in taken.items()})
    return found, words


def _take_long(word: str, words: list[str], source: str) -> dict[str, str]:
    given, equals, value = word[2:].partition("=")
    fitting = [given] if given in NAMES else sorted(name for name in NAMES if name.startswith(given))
    if len(fitting) > 1:
        raise ConfigError(f"{source}: --{given} may be --{' or --'.join(fitting)}; write it out")
    if not fitting and not equals:
        raise ConfigError(f"{source}: --{given} is unknown here; if your sbatch knows it, write --{given}=VALUE")
    name = fitting[0] if fitting else given
    if name in WITHOUT_VALUE and equals:
        raise ConfigError(f"{source}: --{name} takes no value")
    if equals or name in WITHOUT_VALUE | OPTIONAL_VALUE:
        return {name: value}
    return {name: _take_value(word, words, source)}


def _take_short(word: str, words: list[str], source: str) -> dict[str, str]:
    """One letter with its value, or letters without one, of which the last may have one: -HN4."""
    found: dict[str, str] = {}
    for place, letter in enumerate(word[1:], start=2):
        name = LONG.get(letter)
        if name is None:
            raise ConfigError(f"{source}: -{letter} in {word} is no option of sbatch")
        if name in WITHOUT_VALUE:
            found[name] = ""
            continue
        rest = word[place:]
        return found | {name: rest if rest or name in OPTIONAL_VALUE else _take_value(word, words, source)}
    return found


def _take_value(word: str, words: list[str], source: str) -> str:
    if not words:
        raise ConfigError(f"{source}: {word} needs a value")
    return words.pop(0)
