"""Options of sbatch as a script and a command line give them, as far as a preview must understand them."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scaletrain.errors import ConfigError

# Short options by their long names; from `sbatch --help` of Slurm 22.05.
_LONG = {
    "A": "account",
    "a": "array",
    "C": "constraint",
    "c": "cpus-per-task",
    "D": "chdir",
    "d": "dependency",
    "e": "error",
    "G": "gpus",
    "J": "job-name",
    "k": "no-kill",
    "L": "licenses",
    "M": "clusters",
    "N": "nodes",
    "n": "ntasks",
    "o": "output",
    "p": "partition",
    "q": "qos",
    "s": "oversubscribe",
    "t": "time",
    "w": "nodelist",
    "x": "exclude",
}
_WITHOUT_VALUE = {"hold", "ignore-pbs", "no-kill", "oversubscribe", "overcommit", "parsable", "requeue", "no-requeue"}
_WITHOUT_VALUE |= {"spread-job", "test-only", "use-min-nodes", "wait", "quiet", "verbose", "contiguous", "reboot"}
_OPTIONAL_VALUE = {"exclusive", "nice", "get-user-env", "propagate", "no-kill"}
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
        ConfigError: A line holds a shell variable, which sbatch does not expand, or stands below the first command,
            where sbatch does not look.
    """
    options: dict[str, Option] = {}
    is_below = False
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith("#SBATCH"):
            source = f"line {number}"
            if is_below:
                raise ConfigError(f"{source}: {line}: sbatch reads no option below the first command; move it up")
            given = line.removeprefix("#SBATCH")
            if "$" in given or "`" in given:
                raise ConfigError(f"{source}: {line}: sbatch expands no variable here; write the value itself")
            found, rest = _take_options(shlex.split(given, comments=True), source)
            if rest:
                raise ConfigError(f"{source}: {line}: {rest[0]} is no option")
            options |= found
        elif line.strip() and not line.lstrip().startswith("#"):
            is_below = True
    return options


def read_environment(environ: Mapping[str, str]) -> dict[str, Option]:
    """Options that sbatch takes from variables such as SBATCH_PARTITION; between those of script and command line."""
    named = {"SBATCH_" + name.upper().replace("-", "_"): name for name in _LONG.values()}
    named |= {"SBATCH_TIMELIMIT": "time", "SBATCH_GPUS_PER_NODE": "gpus-per-node", "SBATCH_EXCLUSIVE": "exclusive"}
    return {long: Option(environ[name], name) for name, long in named.items() if environ.get(name)}


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
    count = 0
    for part in array.partition("%")[0].split(","):
        found = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part.strip())
        if found is None:
            raise ConfigError(f"--array {array} is no list of tasks; give it as 0-7 or 1,3,5")
        first, last, step = int(found[1]), int(found[2] or found[1]), int(found[3] or 1)
        count += len(range(first, last + 1, step))
    return count


def _take_options(words: list[str], source: str) -> tuple[dict[str, Option], list[str]]:
    """Takes options off the front; the rest begins with what is none."""
    found: dict[str, Option] = {}
    while words and words[0].startswith("-") and words[0] != "-":
        word = words.pop(0)
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
        else:
            name, value = _LONG.get(word[1], word[1]), word[2:].removeprefix("=")
            equals = "=" if value else ""
        takes_value = name not in _WITHOUT_VALUE and name not in _OPTIONAL_VALUE
        if takes_value and not equals:
            if not words:
                raise ConfigError(f"{source}: {word} needs a value")
            value = words.pop(0)
        found[name] = Option(value, source)
    return found, words
