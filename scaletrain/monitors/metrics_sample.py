"""Reads of a long metrics.jsonl only what is needed: its end, the last line with a metric, a sample of its steps."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any, BinaryIO

from scaletrain.monitors import names
from scaletrain.monitors.jsonl_writer import parse_line, read_records
from scaletrain.monitors.run_records import number

_WHOLE_BYTES = 2 << 20  # up to here reading all of it takes a tenth of a second
_BLOCKS = 200
_BLOCK_BYTES = 8 << 10
_CHUNK_BYTES = 1 << 20

Line = dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """Lines of steps that stand for a whole metrics file.

    Attributes:
        lines: In the order of the file. Where the file was too long, a line stands for all steps since the one before:
            its durations are theirs together.
        is_exact: Whether they are the file's own lines, all of them.
    """

    lines: tuple[Line, ...]
    is_exact: bool


def read_tail(path: Path, most_bytes: int = 1 << 18) -> list[Line]:
    """Reads the end of a metrics file.

    Args:
        path: The file; it may be missing.
        most_bytes: How much of it.

    Returns:
        The whole lines there, in order.
    """
    try:
        with path.open("rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - most_bytes)
            return _lines_of(file, start, start + most_bytes)
    except FileNotFoundError:
        return []


def find_last(path: Path, name: str, most_bytes: int = 32 << 20) -> Line | None:
    """Looks for the last line that has a metric.

    Args:
        path: The file; it may be missing.
        name: The metric.
        most_bytes: How far from the end to look.

    Returns:
        The line; None where there is none.
    """
    wanted = f'"{name}"'.encode()
    try:
        with path.open("rb") as file:
            stop = file.seek(0, os.SEEK_END)
            first = max(0, stop - most_bytes)
            while stop > first:
                start = max(first, stop - _CHUNK_BYTES)
                found = [line for line in lines_between(file, start, stop) if wanted in line]
                parsed = (line for raw in reversed(found) if (line := parse_line(raw)) is not None and name in line)
                last = next(parsed, None)
                if last is not None:
                    return last
                stop = start
    except FileNotFoundError:
        pass
    return None


def read_sample(path: Path, keys: Sequence[str], whole_bytes: int = _WHOLE_BYTES) -> Sample:
    """Reads steps that tell where the time went, from places all over the file where it is long.

    Args:
        path: The file; it may be missing.
        keys: What of each line is kept.
        whole_bytes: Up to this size all of it is read.

    Returns:
        The lines.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            if size <= whole_bytes:
                return Sample(tuple(read_records(path, keys)), True)
            borders = _attempt_borders(file, size)
            lines: list[Line] = []
            for start, stop in pairwise([*borders, size]):
                lines += _thinned(file, start, stop, max(1, round(_BLOCKS * (stop - start) / size)), keys)
            return Sample(tuple(lines), False)
    except FileNotFoundError:
        return Sample((), True)


def _attempt_borders(file: BinaryIO, size: int) -> list[int]:
    """Where each attempt begins; their lines follow each other, as a run has one owner at a time."""
    borders = [0]
    while (attempt := _attempt_at(file, borders[-1], size)) is not None:
        low, high = borders[-1], size
        while high - low > 1:
            middle = (low + high) // 2
            if _attempt_at(file, middle, size) == attempt:
                low = middle
            else:
                high = middle
        borders.append(high)
    return borders[:-1]  # behind the last attempt's last line there is none


def _attempt_at(file: BinaryIO, start: int, size: int) -> int | None:
    """Attempt of the first line that begins at or behind a place."""
    for raw in lines_between(file, start, size):
        if (line := parse_line(raw)) is not None:
            return int(line["attempt"])
    return None


def _thinned(file: BinaryIO, start: int, stop: int, blocks: int, keys: Sequence[str]) -> list[Line]:
    """Of one attempt: its first step, and a line for each block, which stands for all steps since the line before."""
    first = next((line for line in _steps_of(file, start, stop)), None)
    if first is None:
        return []
    kept = [_only(first, keys)]
    place = start
    for block in range(1, blocks + 1):
        end = start + (stop - start) * block // blocks
        begin = max(place, end - _BLOCK_BYTES)
        found = [line for line in _steps_of(file, begin, end) if line["time_s"] > first["time_s"]]
        if not found:
            continue
        steps = found[-1]["step"] - kept[-1]["step"]
        if steps <= 0:  # it went back to an earlier step: as many as the bytes hold
            steps = max(1, round(len(found) * (end - place) / (end - begin)))
        line = _only(found[-1], keys)
        for name in (names.PERF_STEP_TIME_S, names.PERF_DATA_WAIT_S):
            if name in line:
                line[name] = steps * fmean(number(one.get(name)) or 0.0 for one in found)
        kept.append(line)
        place = end
    return kept


def _only(line: Line, keys: Sequence[str]) -> Line:
    return {key: line[key] for key in keys if key in line}


def _steps_of(file: BinaryIO, start: int, stop: int) -> Iterator[Line]:
    for raw in lines_between(file, start, stop):
        line = parse_line(raw)
        if line is not None and names.PERF_STEP_TIME_S in line and number(line.get("time_s")) is not None:
            yield line


def _lines_of(file: BinaryIO, start: int, stop: int) -> list[Line]:
    return [line for raw in lines_between(file, start, stop) if (line := parse_line(raw)) is not None]


def lines_between(file: BinaryIO, start: int, stop: int) -> Iterator[bytes]:
    """Reads the lines that begin in a range of a file; the last one may reach out of it.

    Args:
        file: The file.
        start: First byte of the range.
        stop: First byte behind it.

    Yields:
        Each line with its end.
    """
    file.seek(max(0, start - 1))
    place = start
    if start:
        place = start - 1 + len(file.readline())  # the line that holds the byte before
    while place < stop and (line := file.readline()):
        place += len(line)
        yield line
