"""metrics.jsonl: one flat JSON object a line, append-only, readable after any crash."""

import json
import logging
import math
import os
import threading
import time
from collections.abc import Mapping, Sequence
from itertools import groupby
from numbers import Integral
from pathlib import Path
from typing import Any, SupportsFloat

from scaletrain.monitors import names

logger = logging.getLogger(__name__)

_MOST_WAITING_BYTES = 64 << 20  # of lines that the file system does not take; days of steps

# Strict JSON has no such numbers, and null would lose which one it was.
_NON_FINITE = ("NaN", "Infinity", "-Infinity")


_PLACE = ("step", "attempt", "time_s", names.DATA_BATCH_HASH)
"""What tells which lines of a step count."""


class JsonlWriter:
    """Appends metrics to a file, a line for each call.

    A line holds ``step``, ``attempt``, ``time_s`` (Unix time) and the metrics, floats in full precision. NaN and
    infinities are the strings "NaN", "Infinity" and "-Infinity". Each line is handed to the system in one call, so that
    a killed process leaves at most one torn line, the last.

    What the file system does not take, for instance because it is full, is kept and tried again with the next line.

    Args:
        path: The file; made if missing, continued otherwise.
        attempt: How many times the run was started, this start included.
    """

    def __init__(self, path: Path, attempt: int) -> None:
        self._path = path
        self._attempt = attempt
        self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._waiting = bytearray(b"" if _ends_with_newline(self._descriptor) else b"\n")
        self._problem: OSError | None = None
        self._lock = threading.Lock()  # a save flushes from another thread

    def write(self, step: int, metrics: Mapping[str, SupportsFloat | str]) -> None:
        """Appends one line.

        Args:
            step: Global batches consumed.
            metrics: Values by name; numbers of numpy and one-element tensors will do. A text stands as it is.

        Raises:
            OSError: The file system has refused for so long that memory would run out.
        """
        self._append(step, {name: as_json(value) for name, value in metrics.items()})

    def write_text(self, name: str, step: int, text: str) -> None:
        """Appends one line that holds a text instead of numbers.

        Args:
            name: Name of the text.
            step: Global batches consumed.
            text: The text.
        """
        self._append(step, {name: text})

    def flush(self) -> None:
        """Forces all lines to the disk.

        Raises:
            OSError: The file system has refused some of them.
        """
        with self._lock:
            self._drain()
            if self._problem is not None:
                raise self._problem
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        if self._descriptor >= 0:
            self._drain()
            if self._problem is not None:
                logger.error("the last %d bytes of %s are lost: %s", len(self._waiting), self._path, self._problem)
            os.close(self._descriptor)
            self._descriptor = -1

    def _append(self, step: int, fields: dict[str, int | float | str]) -> None:
        record = {"step": step, "attempt": self._attempt, "time_s": time.time(), **fields}
        with self._lock:
            self._waiting += (json.dumps(record, allow_nan=False) + "\n").encode()
            self._drain()
        if self._problem is not None and len(self._waiting) > _MOST_WAITING_BYTES:
            raise self._problem

    def _drain(self) -> None:
        """Hands over what waits. What was taken of a line stays: its rest follows behind it."""
        try:
            while self._waiting:
                del self._waiting[: os.write(self._descriptor, self._waiting)]
            self._problem = None
        except OSError as error:
            if self._problem is None:
                logger.error("metrics wait in memory: %s cannot be written: %s", self._path, error.strerror)
            self._problem = error


def read_metrics(path: Path, keys: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Reads a metrics file, by whatever crashes it was cut.

    Args:
        path: A file that JsonlWriter wrote, also one that is being written.
        keys: Metrics that are kept; all by default, for which a long run may need more memory than there is.

    Returns:
        One dictionary for each step, ascending: ``step``, the highest ``attempt`` that wrote it, ``time_s`` of the last
        write, and all metrics of the step. Where a step was done again, the metrics are those of the last time. Where
        it was measured again only, a metric has the value of the highest attempt.
        Steps that lie behind where a later attempt has begun and that it has not come to are no part of the run any
        more, and are left out like torn lines; so are those that an attempt went back behind, by a rollback.

    Raises:
        FileNotFoundError: There is no such file.
    """
    records = read_records(path, None if keys is None else (*_PLACE, *keys))
    # Sorting is stable: within one attempt a later line counts.
    records.sort(key=lambda record: record["attempt"])
    merged: dict[int, dict[str, Any]] = {}
    for _, own in groupby(records, key=lambda record: record["attempt"]):
        written = list(own)
        begin = min(record["step"] for record in written)
        merged = {step: record for step, record in merged.items() if step <= begin}
        last = begin
        for record in written:
            again = names.DATA_BATCH_HASH in record and names.DATA_BATCH_HASH in merged.get(record["step"], {})
            # Gone back, or trained again: nothing of this step and of those behind it counts any more.
            if record["step"] < last or again:
                merged = {step: other for step, other in merged.items() if step < record["step"]}
            last = record["step"]
            merged.setdefault(last, {}).update(record)
    return [merged[step] for step in sorted(merged)]


def read_records(path: Path, keys: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Reads the lines of a metrics file as they were written, those of steps that were done again included.

    Args:
        path: A file that JsonlWriter wrote, also one that is being written.
        keys: What of each line is kept; all of it by default. A long run's lines hold more than fits in memory.

    Returns:
        One dictionary for each whole line, in the order of the file.

    Raises:
        FileNotFoundError: There is no such file.
    """
    with path.open("rb") as file:
        whole = (record for line in file if (record := parse_line(line)) is not None)
        if keys is None:
            return list(whole)
        return [{key: record[key] for key in keys if key in record} for record in whole]


def parse_line(line: bytes) -> dict[str, Any] | None:
    """Reads one line of a metrics file.

    Args:
        line: Its bytes, with the line's end.

    Returns:
        Its content; None where it is torn, or no line of a metrics file.
    """
    # A line without its end may be a number cut in its middle, which would parse with another value.
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or not all(isinstance(record.get(key), int) for key in ("step", "attempt")):
        return None
    return {
        name: float(value) if isinstance(value, str) and value in _NON_FINITE else value
        for name, value in record.items()
    }


def as_json(value: SupportsFloat | str) -> int | float | str:
    """A metric as JSON has it: a whole number, a finite one, or the name of what is neither."""
    if isinstance(value, str):
        return value
    # Numbers of numpy count as integral, too; through a float a large count would lose digits.
    if isinstance(value, Integral):
        return int(value)
    number = float(value)
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def _ends_with_newline(descriptor: int) -> bool:
    size = os.fstat(descriptor).st_size
    return size == 0 or os.pread(descriptor, 1, size - 1) == b"\n"
