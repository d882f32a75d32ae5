"""How a run ended, as a file of each rank: what a supervisor reads, because launchers lose exit codes."""

import json
import os
import socket
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any

from scaletrain.errors import DivergenceError, HealthError, ScaletrainError, StorageError, UnreachableError
from scaletrain.files import create_text
from scaletrain.log import FOLDER_VARIABLE


class Verdict(StrEnum):
    """The ways in which a run ends."""

    COMPLETE = "complete"
    REQUEUE = "requeue"
    STOPPED = "stopped"
    USER_ERROR = "user_error"
    SICK_NODE = "sick_node"
    HANG = "hang"
    GAVE_UP = "gave_up"
    CRASH = "crash"


@dataclass(frozen=True)
class Ending:
    """How a run ended.

    Attributes:
        verdict: The way.
        reason: Why, in words for people.
        hosts: Machines that are to blame, as far as it is known.
    """

    verdict: Verdict
    reason: str
    hosts: tuple[str, ...] = ()

    @classmethod
    def of_error(cls, error: BaseException) -> "Ending":
        """The end of a run by an exception."""
        said = getattr(error, "__notes__", None) if isinstance(error, SystemExit) else None
        reason = said[0] if said else str(error) or type(error).__name__
        return cls(verdict_of(error), reason, error.hosts if isinstance(error, HealthError) else ())


EXIT_CODES = MappingProxyType(
    {
        Verdict.COMPLETE: 0,
        Verdict.REQUEUE: 75,
        Verdict.STOPPED: 130,
        Verdict.USER_ERROR: 2,
        Verdict.SICK_NODE: 76,
        Verdict.HANG: 77,
        Verdict.GAVE_UP: 78,
        Verdict.CRASH: 1,
    }
)
"""The shell's code of each verdict: a hint only, and 0 counts only together with ``complete``."""

UNCLAIMED = "unclaimed"
"""Folder for the verdicts of processes that ended before they knew their attempt."""


def verdict_of(error: BaseException) -> Verdict:
    """The verdict of a run that ended with an exception."""
    if isinstance(error, KeyboardInterrupt):
        return Verdict.STOPPED
    if isinstance(error, DivergenceError):
        return Verdict.GAVE_UP
    if isinstance(error, HealthError):
        return Verdict.SICK_NODE
    if isinstance(error, ScaletrainError) and not isinstance(error, UnreachableError | StorageError):
        return Verdict.USER_ERROR
    if isinstance(error, SystemExit):
        # Code 0 is no verdict: a library that leaves early has not completed the run.
        named = [verdict for verdict, code in EXIT_CODES.items() if code == error.code and code != 0]
        return named[0] if named else Verdict.CRASH
    return Verdict.CRASH


def verdict_path(run_dir: Path, attempt: int | None, rank: int, pid: int) -> Path:
    """File of one rank's verdict: ``exit/<attempt>/<rank>.json``.

    Args:
        run_dir: The run's folder.
        attempt: Which start of the run; None where the process never learned it.
        rank: Global index of the process.
        pid: Its process number, which tells apart those that never learned their attempt.

    Returns:
        The path, whether it exists or not.
    """
    if attempt is None:
        return run_dir / "exit" / UNCLAIMED / f"{socket.gethostname()}-{pid}-{rank}.json"
    return run_dir / "exit" / str(attempt) / f"{rank}.json"


def write_verdict(
    run_dir: Path,
    attempt: int | None,
    rank: int,
    verdict: Verdict,
    reason: str,
    *,
    pid: int | None = None,
    **fields: Any,
) -> Path:
    """Writes the verdict of a rank, durably and in one piece; the first one written stands.

    Args:
        run_dir: The run's folder; made where it is missing.
        attempt: Which start of the run; None where the process never learned it.
        rank: Global index of the process.
        verdict: How it ended.
        reason: Why, in words for people.
        pid: The process that the verdict is about; the caller by default.
        **fields: Whatever else is known.

    Returns:
        The verdict's file.

    Raises:
        OSError: The run directory cannot be written.
    """
    about = os.getpid() if pid is None else pid
    log_dir = os.environ.get(FOLDER_VARIABLE)  # which launch of a job it belongs to
    path = verdict_path(run_dir, attempt, rank, about)
    content = {
        "verdict": verdict.value,
        "exit_code": EXIT_CODES[verdict],
        "reason": reason,
        "rank": rank,
        "attempt": attempt,
        "host": socket.gethostname(),
        "pid": about,
        "time_s": time.time(),
        **({"log_dir": log_dir} if log_dir else {}),
        **fields,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    create_text(path, json.dumps(content, default=str))
    return path


def read_verdict(path: Path) -> dict[str, Any] | None:
    """Reads one verdict's file; None where it is missing or unreadable."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and "verdict" in content else None


def read_verdicts(run_dir: Path, attempt: int) -> dict[int, dict[str, Any]]:
    """Reads the verdicts of an attempt.

    Args:
        run_dir: The run's folder.
        attempt: Which start of the run.

    Returns:
        What each rank's file says, by rank; ranks without a file are absent.
    """
    files = (run_dir / "exit" / str(attempt)).glob("*.json")
    found = {int(file.stem): read_verdict(file) for file in files if file.stem.isdigit()}
    return {rank: content for rank, content in sorted(found.items()) if content is not None}
