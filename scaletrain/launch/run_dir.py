"""The run directory: the unit that the same command starts, or goes on with."""

import errno
import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scaletrain.errors import ConfigError, StorageError
from scaletrain.files import replace_text
from scaletrain.launch.attempts import launch_of_this_process, new_attempt, register_rank
from scaletrain.launch.heartbeat import Lease
from scaletrain.launch.identity import Change, Identity, changes, read_identity, write_identity
from scaletrain.launch.lease import release_lease, take_lease
from scaletrain.launch.provenance import code_state, versions

_RUN_ID = "run_id"
_PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE)
"""Errors of a file system that is full or sick: somebody mends it, and the same command goes on."""
_FOLDERS = ("exit", "tb", "checkpoints", "logs")


class RunDirectory:
    """A run's folder. Rank 0 claims and describes it, every rank joins it.

    Attributes:
        path: The folder, absolute: a change of the working directory does not move the run.
        events: events.jsonl.
        metrics: metrics.jsonl.
        config: config.yaml, the resolved configuration of the last start.
        tensorboard: Folder for TensorBoard.
        checkpoints: Folder for checkpoints.
        logs: Folder for logs.
        displaced: After ``claim``, the lease of an owner that had died without giving it back.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.events = self.path / "events.jsonl"
        self.metrics = self.path / "metrics.jsonl"
        self.config = self.path / "config.yaml"
        self.tensorboard = self.path / "tb"
        self.checkpoints = self.path / "checkpoints"
        self.logs = self.path / "logs"
        self.displaced: Lease | None = None

    def claim(self) -> int:
        """Makes the folder where it is missing, takes its lease and numbers this start. For rank 0.

        Returns:
            The attempt, one more than that of the start before.

        Raises:
            ConfigError: A living process owns the folder, or it cannot be written.
        """
        with _told_as_config_error(self.path):
            for folder in _FOLDERS:
                (self.path / folder).mkdir(parents=True, exist_ok=True)
            self.displaced = take_lease(self.path)
            self._name_run()
            return new_attempt(self.path, launch_of_this_process())

    @property
    def run_id(self) -> str:
        """Tells this run apart from any other, wherever its folder is moved; there once rank 0 has claimed it."""
        return read_run_id(self.path) or ""

    def _name_run(self) -> None:
        known = _read_run_id(self.path)
        if known is None:
            known = (uuid.uuid4().hex, self.path)
        elif known[1] != self.path and read_run_id(known[1]) == known[0]:
            # A copy, beside its original: the two must not share what stands outside of their folders.
            known = (uuid.uuid4().hex, self.path)
        replace_text(self.path / _RUN_ID, json.dumps({"id": known[0], "path": str(self.path)}) + "\n")

    def join(self, attempt: int, rank: int) -> None:
        """Registers this process as a rank of an attempt: signals for the rank go to the pid written there.

        Args:
            attempt: What ``claim`` returned to rank 0.
            rank: Global index of this process.

        Raises:
            ConfigError: The folder cannot be written.
        """
        with _told_as_config_error(self.path):
            register_rank(self.path, attempt, rank)

    def compare(self, identity: Identity) -> list[Change]:
        """Checks that the folder belongs to this run, and writes nothing.

        As long as nothing was trained there is nothing to protect: a first start that failed binds nobody.

        Args:
            identity: What this start is.

        Returns:
            What differs from the start before, and may.

        Raises:
            ConfigError: The folder belongs to another run.
        """
        known = read_identity(self.path / "identity.json") if self.has_trained() else None
        return changes(known, identity, self.path) if known else []

    def bind(self, identity: Identity) -> list[Change]:
        """Checks like ``compare``, and remembers what the run is. For rank 0.

        Args:
            identity: What this start is.

        Returns:
            What differs from the start before, and may.

        Raises:
            ConfigError: The folder belongs to another run, or cannot be written.
        """
        with _told_as_config_error(self.path):
            found = self.compare(identity)
            write_identity(self.path / "identity.json", identity)
        return found

    def has_trained(self) -> bool:
        """Whether an earlier start left metrics or checkpoints."""
        try:
            if self.metrics.stat().st_size > 0:
                return True
        except FileNotFoundError:
            pass
        return self.checkpoints.is_dir() and any(self.checkpoints.glob("step_*"))

    def describe(self, config_yaml: str) -> None:
        """Writes what this start runs with: config.yaml, code.diff and versions.json. For rank 0.

        Args:
            config_yaml: The resolved configuration.

        Raises:
            ConfigError: The folder cannot be written.
        """
        with _told_as_config_error(self.path):
            replace_text(self.config, config_yaml)
            replace_text(self.path / "code.diff", code_state())
            replace_text(self.path / "versions.json", json.dumps(versions(), indent=1) + "\n")

    def release(self) -> None:
        """Gives the lease back. For rank 0, at the end."""
        with _told_as_config_error(self.path):
            release_lease(self.path)


def read_run_id(run_dir: Path) -> str | None:
    """What tells a run apart from any other; None where its folder has not been claimed yet."""
    known = _read_run_id(run_dir)
    return known[0] if known else None


def local_folder(local_dir: Path, run_id: str) -> Path:
    """The folder of a run's checkpoints on a node's own disk.

    Args:
        local_dir: ``checkpoint.local_dir``.
        run_id: What tells the run apart.
    """
    return local_dir.absolute() / run_id[:12]


def _read_run_id(run_dir: Path) -> tuple[str, Path] | None:
    try:
        content = json.loads((run_dir / _RUN_ID).read_text())
        return str(content["id"]), Path(content["path"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def _told_as_config_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        place = error.filename or path
        kind = StorageError if error.errno in _PASSING else ConfigError
        raise kind(
            f"run directory {path} cannot be written: {error.strerror or error} ({place}); "
            "give another --run_dir, or make room and permission there"
        ) from None
