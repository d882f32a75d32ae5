"""Where checkpoints stand and what a folder of one holds."""

import re
from pathlib import Path

COMPLETE = "COMPLETE"
FILES = "files.json"
STATE = "state.json"
CONFIG = "config.yaml"

_NAME = re.compile(r"step_(\d{8,})")
_UNFINISHED = re.compile(r"(?:partial|discarded)_step_\d{8,}")


def folder_name(step: int) -> str:
    """Name of the checkpoint that follows global batch ``step - 1``."""
    return f"step_{step:08d}"


def partial_name(step: int) -> str:
    """Name of a checkpoint that is still being written."""
    return f"partial_{folder_name(step)}"


def discarded_name(folder: Path) -> str:
    """Name of a checkpoint that is being deleted."""
    return f"discarded_{folder.name}"


def step_of(folder: Path) -> int | None:
    """Step of a checkpoint's folder, or None when the name is not one."""
    match = _NAME.fullmatch(folder.name)
    return int(match.group(1)) if match else None


def list_checkpoints(checkpoints: Path) -> list[Path]:
    """Folders that claim to be complete, the newest first.

    Args:
        checkpoints: The run's ``checkpoints`` folder; it need not exist.

    Returns:
        Numbered folders that hold ``COMPLETE``.
    """
    if not checkpoints.is_dir():
        return []
    found = [folder for folder in checkpoints.iterdir() if step_of(folder) is not None and (folder / COMPLETE).exists()]
    return sorted(found, key=lambda folder: step_of(folder) or 0, reverse=True)


def list_unfinished(checkpoints: Path) -> list[Path]:
    """Folders that a killed run left behind while it wrote or deleted them."""
    if not checkpoints.is_dir():
        return []
    return sorted(folder for folder in checkpoints.iterdir() if _UNFINISHED.fullmatch(folder.name))
