"""Which code, which packages and which machine a run was started with."""

import platform
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import scaletrain

_PACKAGES = ("torch", "deepspeed", "numpy", "pydantic", "tokenizers", "webdataset", "safetensors", "tensorboard")
_GIT_TIMEOUT_S = 20.0


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that results depend on; None for those not installed."""
    found: dict[str, str | None] = {
        "scaletrain": scaletrain.__version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "host": socket.gethostname(),
    }
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def code_state() -> str:
    """The commit of the code that runs, and what was changed since.

    Returns:
        A patch for ``git apply`` on that commit, below comment lines with the commit and the names of
        untracked files; a comment alone where the code does not stand in a git checkout.
    """
    root = Path(scaletrain.__file__).resolve().parents[1]
    try:
        commit = _git(root, "rev-parse", "HEAD").strip()
        untracked = _git(root, "ls-files", "--others", "--exclude-standard").splitlines()
        patch = _git(root, "diff", "--binary", "HEAD")
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", None) or error
        return f"# {root} is not a git checkout that can be read: {str(detail).strip().splitlines()[0]}\n"
    lines = [f"# commit {commit}", *(f"# untracked: {name}" for name in untracked)]
    return "\n".join(lines) + "\n" + patch


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), "--no-optional-locks", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=True, timeout=_GIT_TIMEOUT_S)
    return done.stdout
