"""The run's diary: one JSON line for each thing that happened, from which its history and goodput are computed."""

import errno
import json
import os
import time
from pathlib import Path
from typing import Any


def append_event(path: Path, event: str, /, **fields: Any) -> None:
    """Adds a line to ``events.jsonl``.

    The line is written in one piece to the end of the file, so that processes of one machine can share it.
    A line that a killed writer left unfinished is closed first, and is then one that readers pass over.

    Args:
        path: The file; it is made where it is missing.
        event: What happened: start, resume, save, change, signal, exit, ...
        **fields: What belongs to it; values that JSON does not know are written as text.

    Raises:
        OSError: The file system took none of the line, or a part of it, which readers pass over.
    """
    line = json.dumps({"time_s": time.time(), "event": event, **fields}, default=str) + "\n"
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        data = (("\n" if torn else "") + line).encode()
        if os.write(descriptor, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(descriptor)


def read_events(path: Path) -> list[dict[str, Any]]:
    """Reads ``events.jsonl``, passing over lines that a killed writer left unfinished.

    Args:
        path: The file.

    Returns:
        The events, oldest first; none where there is no file.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return [event for line in lines if (event := read_line(line)) is not None]


def read_line(line: str) -> dict[str, Any] | None:
    """The object in a line of a file of JSON lines; None where it is torn or no object."""
    try:
        found = json.loads(line)
    except json.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None
