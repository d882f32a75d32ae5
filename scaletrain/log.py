"""Logging: one handler on standard error, the rank in every line."""

import contextlib
import io
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from scaletrain.ranks import Ranks

FOLDER_VARIABLE = "SCALETRAIN_LOG_DIR"
"""Environment variable with the folder in which each rank has a log of its own."""

_NOISY = ("DeepSpeed", "deepspeed", "torch.distributed", "fsspec", "asyncio", "compilers")


def configure(ranks: Ranks, level: int = logging.INFO) -> None:
    """Sets the root logger up for this process.

    Rank 0 logs at ``level``; the others only warnings and worse, so that a message common to all
    ranks stands once in the job's log.

    Args:
        ranks: The place of this process.
        level: Lowest level that rank 0 prints.
    """
    root = logging.getLogger()
    root.handlers[:] = [_handler(ranks)]
    root.setLevel(level if ranks.is_main else logging.WARNING)
    for noisy in _NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)


def redirect(ranks: Ranks, environ: Mapping[str, str]) -> None:
    """Sends all that this process and its children print to the rank's own file, where a folder for these is named.

    What Python writes to the standard error of rank 0, its log and its last words, goes to where it went before as
    well: the job's log shows how the training goes, and why it ended.

    Args:
        ranks: The place of this process.
        environ: Names the folder, ``SCALETRAIN_LOG_DIR``, or not.
    """
    folder = environ.get(FOLDER_VARIABLE)
    if not folder:
        return
    path = rank_log(Path(folder), ranks.rank)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        logging.getLogger(__name__).warning("no log of its own for rank %d: %s: %s", ranks.rank, path, error.strerror)
        return
    before = os.dup(2)
    for descriptor in (1, 2):  # also what libraries in C print, and what children inherit
        os.dup2(log, descriptor)
    os.close(log)
    if ranks.is_main:
        job = os.fdopen(before, "w", buffering=1, encoding="utf-8", errors="backslashreplace")
        sys.stderr = _Both(sys.stderr, job)
        logging.getLogger().handlers[:] = [_handler(ranks)]
    else:
        os.close(before)


def rank_log(folder: Path, rank: int) -> Path:
    """File that a rank's output goes to."""
    return folder / f"rank-{rank:05d}.log"


class _Both(io.TextIOBase):
    """The standard error of a rank whose log is a file, which the job's log shows too."""

    def __init__(self, log: TextIO, job: TextIO) -> None:
        self._log, self._job = log, job

    def write(self, text: str) -> int:
        # Nobody may read the job's log any more, or its disk be full: the rank's own gets all there is.
        with contextlib.suppress(OSError, ValueError):
            self._job.write(text)
        return self._log.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._job.flush()
        self._log.flush()

    def fileno(self) -> int:
        return self._log.fileno()


def _handler(ranks: Ranks) -> logging.Handler:
    name = "" if ranks.world_size == 1 else f" rank {ranks.rank}"
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"%(asctime)s{name} %(levelname).1s %(name)s: %(message)s", "%H:%M:%S"))
    return handler
