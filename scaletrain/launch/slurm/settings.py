"""What a user may say about a job beside sbatch's options and the training's arguments: environment variables."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from scaletrain.errors import ConfigError


@dataclass(frozen=True)
class Settings:
    """How a job is supervised; each field is read from the environment variable of its name in capitals.

    Attributes:
        spare_nodes: Nodes of the allocation that wait for another one to fail.
        preflight: ``full`` checks each node, then the connections between them; ``nodes`` and ``off`` do less.
        min_bandwidth_gb_s: Bus bandwidth of an all-reduce, in GB/s, below which a connection counts as slow.
        check_limit_s: Longest time of one round of checks, in seconds.
        check_rules: A YAML file with changes to the rules by which the check of a node judges its GPUs.
        crash_limit: Launches in a row without a new checkpoint after which the job gives up.
        backoff_s: Seconds before a job is started again for an unknown reason; doubled each time, up to an hour.
        drain_nodes: Whether Slurm is asked to drain a sick node, which it lets operators do.
        node_ledger: Folder, shared by jobs, that remembers which nodes failed.
        ledger_days: Days for which it counts.
        max_excluded_share: Share of the partition's nodes that a job leaves out by itself at most.
        container: An image: a .sqsh file or registry address for pyxis, a .sif file for Apptainer.
        container_mounts: More folders to mount, as ``/from:/to``, separated by commas.
        on_end: A shell command that runs when the job stops, and not when it is requeued; ``EXIT_CODE`` and ``REASON``
            are in its environment.
        local_ranks: Processes on each node; 0 for one for each GPU of the job, or one without GPUs.
    """

    spare_nodes: int = 0
    preflight: str = "full"
    min_bandwidth_gb_s: float = 0.02
    check_limit_s: float = 180.0
    check_rules: str = ""
    crash_limit: int = 3
    backoff_s: float = 60.0
    drain_nodes: bool = True
    node_ledger: str = ""
    ledger_days: float = 7.0
    max_excluded_share: float = 0.25
    container: str = ""
    container_mounts: str = ""
    on_end: str = ""
    local_ranks: int = 0

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "Settings":
        """Reads the settings.

        Args:
            environ: The job's environment.

        Returns:
            The settings; what is absent or empty has its default.

        Raises:
            ConfigError: A value is none of its kind; names the variable, the value and the rule.
        """
        given = {
            field.name: _read(field.name, environ[field.name.upper()], field.default)
            for field in fields(cls)
            if environ.get(field.name.upper())
        }
        settings = cls(**given)
        if settings.preflight not in ("full", "nodes", "off"):
            raise ConfigError(f"PREFLIGHT={settings.preflight}: expected full, nodes or off")
        if settings.crash_limit < 1:
            raise ConfigError(f"CRASH_LIMIT={settings.crash_limit}: expected at least 1 launch")
        if settings.max_excluded_share > 1:
            raise ConfigError(f"MAX_EXCLUDED_SHARE={settings.max_excluded_share:g}: expected a share, 0 to 1")
        return settings

    def ledger_folder(self, environ: Mapping[str, str]) -> Path:
        """Where failures of nodes are remembered: NODE_LEDGER, or a folder of the user that all nodes see."""
        if self.node_ledger:
            return Path(self.node_ledger)
        home = Path(environ.get("HOME", "/tmp"))
        return Path(environ.get("XDG_STATE_HOME") or home / ".local" / "state") / "scaletrain" / "nodes"


def _read(name: str, text: str, default: Any) -> Any:
    variable = name.upper()
    if isinstance(default, bool):
        if text not in ("0", "1"):
            raise ConfigError(f"{variable}={text}: expected 0 or 1")
        return text == "1"
    if isinstance(default, str):
        return text
    kind = type(default)
    try:
        value = kind(text)
    except ValueError:
        raise ConfigError(f"{variable}={text}: expected {'a whole number' if kind is int else 'a number'}") from None
    if not 0 <= value < float("inf"):
        raise ConfigError(f"{variable}={text}: expected zero or more")
    return value
