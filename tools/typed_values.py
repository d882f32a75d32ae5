"""What was typed behind an option of a tool, as the value that it means.

Each of these raises ConfigError for a text that means none.
"""

import math
from pathlib import Path

from scaletrain.errors import ConfigError
from scaletrain.protocols import Step


def split_step(text: str) -> tuple[Path, Step | None]:
    """``RUN@STEP``; the name of a folder may hold an @ as well."""
    name, at, step = text.rpartition("@")
    if not at or Path(text).exists():
        return Path(text), None
    return Path(name), step_number(step)


def step_number(text: str | None) -> Step | None:
    """The step of a checkpoint, or the best one; None where none was given."""
    if text is None or text == "best":
        return None if text is None else "best"
    if not text.isdecimal():
        raise ConfigError(
            f"--step {text} is no whole number; give the step of a checkpoint, such as --step 1000, or --step best"
        )
    return int(text)


def number(name: str, text: str) -> float:
    """Any number."""
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"--{name} {text} is no number; give one, such as --{name} 1") from None


def not_negative(name: str, text: str) -> float:
    """A finite number, 0 or more."""
    if not 0 <= number(name, text) < math.inf:
        raise ConfigError(f"--{name} {text} is out of range; give 0 or a number above it")
    return number(name, text)


def positive(name: str, text: str) -> float:
    """A finite number above 0."""
    if not 0 < number(name, text) < math.inf:
        raise ConfigError(f"--{name} {text} is out of range; give a number above 0")
    return number(name, text)


def whole(name: str, text: str) -> int:
    """A whole number, 1 or more."""
    if not text.isdecimal() or not int(text):
        raise ConfigError(f"--{name} {text} is out of range; give a whole number, 1 or more")
    return int(text)


def choice(name: str, text: str, known: dict[str, str]) -> str:
    """What one of several words means."""
    if text not in known:
        raise ConfigError(f"--{name} {text} is none of {', '.join(known)}")
    return known[text]


def truth(name: str, text: str) -> bool:
    """Yes or no."""
    if text.lower() not in ("true", "false"):
        raise ConfigError(f"--{name} {text}: expected true or false, or nothing at all")
    return text.lower() == "true"
