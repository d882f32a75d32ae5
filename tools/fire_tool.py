"""What the tools that take one request by fire have in common: how they are run, and with which code they end."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from typing import Any

import fire

from scaletrain.errors import ConfigError, ScaletrainError

# An attribute of the functions that SetParseFn marks, which --help would list as a group of commands: fire leaves out
# what begins with an underscore.
fire.decorators.FIRE_METADATA = "_fire_metadata"


def run_tool(
    name: str,
    parse: Callable[..., Any] | Mapping[str, Callable[..., Any]],
    run: Callable[[Any], int | None],
    mistake: int = 2,
) -> int:
    """Runs a tool.

    Args:
        name: The tool's, for its help.
        parse: Takes keywords as they were typed, and returns the request, a dataclass. Of a tool with verbs, one for
            each of them by its name.
        run: Does what the request asks for, and returns an exit code, or None for 0.
        mistake: The exit code for a mistake of the user's.

    Returns:
        The exit code: that for a mistake, 130 for Ctrl-C, and where nobody reads the output any more.
    """
    try:
        request = fire.Fire(parse, name=name, serialize=lambda _: None)
        if not is_dataclass(request):
            raise ConfigError("a word stands where an option should; give all values as --name value")
        return run(request) or 0
    except ScaletrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return mistake
    except fire.core.FireExit as ended:
        return mistake if ended.code else 0
    except (KeyboardInterrupt, BrokenPipeError):
        return 130
