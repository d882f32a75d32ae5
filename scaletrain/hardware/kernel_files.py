"""Small files in which the kernel tells numbers, under /proc, /sys and in control groups.

What is missing, cannot be read or is no number is None: "not told", which is something else than 0.
"""

import os
from collections.abc import Iterable
from pathlib import Path


def read_text(path: Path | str) -> str | None:
    """Reads a file of the kernel, without the white space around its content.

    Args:
        path: The file.

    Returns:
        Its text; None where it cannot be read, as a driver may refuse also what it lists.
    """
    try:
        # Not through pathlib and Python's buffers: a reading opens a hundred files, and shall cost little.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        parts = []
        while part := os.read(descriptor, 65536):
            parts.append(part)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return b"".join(parts).decode(errors="replace").strip()


def read_words(path: Path) -> list[str]:
    """The words of a file; none where it cannot be read."""
    return (read_text(path) or "").split()


def read_number(path: Path | str, base: int = 10) -> int | None:
    """Reads a file that holds one whole number.

    Args:
        path: The file.
        base: Of the number; 0 for one that may begin with "0x".

    Returns:
        The number; None where it is not told.
    """
    try:
        return int(read_text(path) or "", base)
    except ValueError:
        return None


def read_table(path: Path) -> dict[str, int]:
    """Reads a file with a name and a number in each line, such as memory.events or /proc/vmstat.

    Args:
        path: The file.

    Returns:
        The numbers by name; empty where the file cannot be read.
    """
    words = (line.split() for line in (read_text(path) or "").splitlines())
    return {line[0].rstrip(":"): int(line[1]) for line in words if len(line) > 1 and line[1].isdigit()}


def list_names(folder: Path) -> list[str]:
    """Names in a folder, sorted; none where there is no such folder."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def total(numbers: Iterable[int | None]) -> int | None:
    """The sum of what is told; None where nothing is."""
    told = [number for number in numbers if number is not None]
    return sum(told) if told else None


def largest(numbers: Iterable[float | None]) -> float | None:
    """The largest of what is told; None where nothing is."""
    return max((number for number in numbers if number is not None), default=None)
