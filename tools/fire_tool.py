"""What the tools that take one request by fire have in common: how they are run, and with which code they end."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from typing import Any

import fire

from scaletrain.errors import ConfigError, ScaletrainError


def step_of(text: str | None) -> int | None:
    """The checkpoint that ``--step`` names; None for the newest intact one."""
    if text is None or text.isdecimal():
        return None if text is None else int(text)
    raise ConfigError(f"--step {text} is not a whole number; give one, such as --step 100, or leave it out")


def is_given(name: str, text: str) -> bool:
    """Whether a flag without a value is given."""
    if text.lower() not in ("true", "false"):
        raise ConfigError(f"--{name} {text}: expected true or false, or nothing at all")
    return text.lower() == "true"


def run_tool(
    name: str, parse: Callable[..., Any] | Mapping[str, Callable[..., Any]], run: Callable[[Any], int | None]
) -> int:
    """Runs a tool.

    Args:
        name: The tool's, for its help.
        parse: Takes keywords as they were typed, and returns the request, a dataclass. Of a tool with verbs, one for
            each of them by its name.
        run: Does what the request asks for, and returns an exit code, or None for 0.

    Returns:
        The exit code: 2 for a mistake of the user's, 130 for Ctrl-C, and where nobody reads the output any more.
    """
    try:
        request = fire.Fire(parse, name=name, serialize=lambda _: None)
        if not is_dataclass(request):
            raise ConfigError("a word stands where an option should; give all values as --name value")
        return run(request) or 0
    except ScaletrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, BrokenPipeError):
        return 130
