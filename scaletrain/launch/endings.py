"""How a rank takes its leave: the verdict, the event and the lease; in order, or at once from any thread."""

import contextlib
import logging
import os
import sys
import threading
from typing import Any

from scaletrain.errors import ScaletrainError
from scaletrain.launch.events import append_event
from scaletrain.launch.run_dir import RunDirectory
from scaletrain.launch.verdicts import EXIT_CODES, Ending, verdict_path, write_verdict
from scaletrain.ranks import Ranks

logger = logging.getLogger(__name__)

_LEAVE_S = 3.0
"""Longest time for the last words of a rank that ends at once: a disk that does not answer must not hold it."""


def record_ending(folder: RunDirectory, attempt: int | None, ranks: Ranks, ending: Ending) -> None:
    """Writes a rank's verdict; rank 0 also writes the event and gives the lease back.

    What cannot be written is only told: the end of a process must not fail.

    Args:
        folder: The run's folder.
        attempt: Which start of the run; None where the process never learned it.
        ranks: The place of this process.
        ending: How it ended.
    """
    try:
        blamed: dict[str, Any] = {"hosts": ending.hosts} if ending.hosts else {}
        write_verdict(folder.path, attempt, ranks.rank, ending.verdict, ending.reason, **blamed)
    except OSError as error:
        logger.warning("the verdict %s cannot be written: %s", ending.verdict.value, error)
    if not ranks.is_main or attempt is None:
        return
    try:
        append_event(folder.events, "exit", attempt=attempt, verdict=ending.verdict.value, reason=ending.reason)
        folder.release()
    except (OSError, ScaletrainError) as error:
        logger.warning("the run directory is not left in order: %s", error)


def end_at_once(
    folder: RunDirectory, attempt: int | None, ranks: Ranks, ending: Ending, event: str | None = None
) -> None:
    """Ends this process without a return, whatever its other threads do: nothing more is saved.

    Args:
        folder: The run's folder.
        attempt: Which start of the run; None where the process never learned it.
        ranks: The place of this process.
        ending: How it ends.
        event: What rank 0 leaves in the run's diary before; None for nothing.
    """
    code = EXIT_CODES[ending.verdict]
    bound = threading.Timer(_LEAVE_S, os._exit, (code,))
    bound.daemon = True
    bound.start()
    try:
        # A verdict that stands was written by the main thread, which is ending by itself.
        if not verdict_path(folder.path, attempt, ranks.rank, os.getpid()).exists():
            if event is not None and ranks.is_main:
                with contextlib.suppress(OSError):
                    append_event(folder.events, event, attempt=attempt, reason=ending.reason, hosts=ending.hosts)
            record_ending(folder, attempt, ranks, ending)
        say(f"ends at once: {ending.reason}")
    finally:
        os._exit(code)


def say(text: str) -> None:
    """Prints to standard error, which nobody may read any more, or whose disk may be full: the end must not fail."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def let_go_of_streams() -> None:
    """Flushes the standard streams; what they do not take is dropped, or the interpreter would end with code 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
