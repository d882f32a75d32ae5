"""What the scripts in slurm/ make of their arguments, for a preview: their text is the other half of this."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from scaletrain.errors import ConfigError


def supervises(text: str) -> bool:
    """Whether a batch script becomes the supervisor of a training.

    Args:
        text: The script.
    """
    return re.search(r"^\s*supervise\b", text, re.MULTILINE) is not None


def sweep_lines(file: Path) -> list[str]:
    """Reads the arguments of each run.

    Args:
        file: Blank lines and those that begin with # do not count.

    Returns:
        The lines that do.

    Raises:
        ConfigError: The file cannot be read.
    """
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is no text"
        raise ConfigError(f"{file}: {reason}; name a file with the arguments of one run in each line") from None
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def training_arguments(script: str, arguments: Sequence[str], task: int | None) -> tuple[str, ...]:
    """The arguments that reach the training.

    Args:
        script: Name of the script.
        arguments: The script's own.
        task: Index in the job array; None outside of one.

    Returns:
        The training's arguments; the same ones, but for a sweep.

    Raises:
        ConfigError: The script would refuse them.
    """
    if script == "sweep.sh":
        return _of_sweep(arguments, task)
    if script == "finetune.sh" and not any(word.startswith("--init") for word in arguments):
        raise ConfigError("--init is missing: name the run whose weights are to be fine-tuned, as --init runs/pretrain")
    return tuple(arguments)


def _of_sweep(arguments: Sequence[str], task: int | None) -> tuple[str, ...]:
    if task is None:
        raise ConfigError("a sweep is a job array: --array=0-2 slurm/sweep.sh FILE ...")
    if not arguments:
        raise ConfigError("no file: name a file with the arguments of one run in each line")
    file = Path(arguments[0])
    own = sweep_lines(file)
    if task >= len(own):
        raise ConfigError(f"task {task} counts from 0, and {file} has {len(own)} lines; give --array=0-{len(own) - 1}")
    return (*arguments[1:], *shlex.split(own[task]), "--run_dir", f"runs/{file.stem}/{task}")
