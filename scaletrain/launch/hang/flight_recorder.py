"""torch's flight recorder: the last collectives that NCCL was given, dumped by a thread of the rank when it is asked.

Source of names and manner: ``ProcessGroupNCCL`` of torch (``DumpPipe``), whose monitor reads a named pipe for each rank
and writes a dump when something comes out of it.
"""

import contextlib
import os
import time
from pathlib import Path

PIPE_VARIABLE = "TORCH_NCCL_DEBUG_INFO_PIPE_FILE"
SIZE_VARIABLES = ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE")  # the new name and the old one
DUMP_VARIABLES = ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE")
_DUMP_S = 10.0
PREFIX = "collectives_"
"""Of the files in a report; ``torchfrtrace --prefix collectives_ FOLDER`` reads them."""


def variables(folder: str, records: int) -> dict[str, str]:
    """Settings by which NCCL records, and dumps when it is asked.

    Args:
        folder: For pipe and dump, on this machine.
        records: Collectives that are kept.
    """
    sizes = dict.fromkeys(SIZE_VARIABLES, str(records))
    return sizes | dict.fromkeys(DUMP_VARIABLES, f"{folder}/dump_") | {PIPE_VARIABLE: f"{folder}/pipe_"}


def take_dump(folder: str, rank: int, target: Path) -> str:
    """Asks a rank for its dump, and copies that.

    Args:
        folder: As for ``variables``.
        rank: Global index of the rank.
        target: Folder of the copies; made where it is missing.

    Returns:
        Why there is none, for people; empty where there is one.

    Raises:
        OSError: The copy cannot be written.
    """
    dump = Path(folder) / f"dump_{rank}"
    try:
        pipe = os.open(Path(folder) / f"pipe_{rank}.pipe", os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return "the rank has not connected over NCCL, or torch offers no pipe"
    try:
        os.write(pipe, b"1\n")
    except OSError as error:
        return f"its pipe takes nothing: {error.strerror}"
    finally:
        os.close(pipe)
    deadline_s = time.monotonic() + _DUMP_S
    size, last = 0, -1
    while time.monotonic() < deadline_s and (size == 0 or size != last):
        time.sleep(0.2)
        last = size
        with contextlib.suppress(FileNotFoundError):
            size = dump.stat().st_size
    if size == 0:
        return f"it was asked for and did not come within {_DUMP_S:.0f} s"
    target.mkdir(parents=True, exist_ok=True)
    (target / f"{PREFIX}{rank}").write_bytes(dump.read_bytes())
    return ""


def clear_dumps(folder: str) -> None:
    """Removes the folder of a rank that has ended, if it has one."""
    if folder:
        with contextlib.suppress(OSError):
            for entry in os.scandir(folder):
                os.unlink(entry.path)
            os.rmdir(folder)
