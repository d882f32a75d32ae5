"""Whether a node's folders can be used: for temporary files, for shared memory, and on the shared file system.

``python -m scaletrain.hardware.folders SHARED_DIR TOKEN MIN_FREE_GIB`` prints the findings as JSON: a process of its
own, since a call to a file server that is gone may never return.
"""

import json
import shutil
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from scaletrain.hardware.bounded import announce
from scaletrain.hardware.findings import Finding

_GIB = 2**30
_SHM_GIB = 1.0
"""Free shared memory below which DataLoader workers may not be able to hand their batches over."""
_SHARED_GIB = 1.0
_TOKEN_S = 2.0
"""A shared file system may show another node's file a moment later."""


def check_folders(shared_dir: Path | None, token: str, min_free_gib: float) -> list[Finding]:
    """Looks at the folders.

    Args:
        shared_dir: Folder on the shared file system; None where none is looked at.
        token: What stands in its file ``token``.
        min_free_gib: Free space wanted in the folder for temporary files.

    Returns:
        A finding for each folder.
    """
    shared = [] if shared_dir is None else [_check_shared(shared_dir, token)]
    return [_check_temporary(min_free_gib), _check_shm(), *shared]


def _check_temporary(wanted_gib: float) -> Finding:
    announce("looks for a folder for temporary files")
    try:
        folder = tempfile.gettempdir()  # writes a file on the way
        free_gib = shutil.disk_usage(folder).free / _GIB
    except OSError as error:
        return Finding("disk", "fail", f"no folder for temporary files can be used: {error.strerror}; set TMPDIR")
    text = f"{free_gib:.1f} GiB free in {folder}, {wanted_gib:g} are wanted"
    if free_gib < wanted_gib:
        return Finding("disk", "fail", f"{text}; make room there, or set TMPDIR")
    return Finding("disk", "ok", text)


def _check_shm() -> Finding:
    try:
        free_gib = shutil.disk_usage("/dev/shm").free / _GIB
    except OSError as error:
        return Finding("shm", "warn", f"/dev/shm: {error.strerror}; DataLoader workers need it")
    text = f"{free_gib:.1f} GiB free in /dev/shm, {_SHM_GIB:g} are wanted for DataLoader workers"
    if free_gib < _SHM_GIB:
        return Finding("shm", "warn", f"{text}; look for files that others left there, or give the container more")
    return Finding("shm", "ok", text)


def _check_shared(folder: Path, token: str) -> Finding:
    """Reads what the first node wrote; that this node can write there its result shows."""
    announce(f"reads {folder}")
    problem = _token_problem(folder, token)
    until_s = time.monotonic() + _TOKEN_S
    while problem and time.monotonic() < until_s:
        time.sleep(0.2)
        problem = _token_problem(folder, token)
    if problem:
        return Finding("shared files", "fail", problem)
    free_gib = shutil.disk_usage(folder).free / _GIB
    text = f"{free_gib:.1f} GiB free in {folder}"
    if free_gib < _SHARED_GIB:
        return Finding("shared files", "warn", f"{text}, {_SHARED_GIB:g} are wanted; make room for checkpoints")
    return Finding("shared files", "ok", text)


def _token_problem(folder: Path, token: str) -> str:
    try:
        found = (folder / "token").read_text(errors="replace")
    except OSError as error:
        return f"{folder}: {error.strerror}; mount the shared file system"
    if found != token:
        return f"{folder}/token is not what the first node wrote: a stale mount; mount it anew"
    return ""


if __name__ == "__main__":
    shared_dir, token, min_free_gib = sys.argv[1:]
    found = check_folders(Path(shared_dir) if shared_dir else None, token, float(min_free_gib))
    print(json.dumps([asdict(one) for one in found]))
