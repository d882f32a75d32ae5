"""What the status of a run is told from, read in a moment also where the run is weeks old."""

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from scaletrain.errors import ConfigError
from scaletrain.launch.events import read_events
from scaletrain.launch.heartbeat import Lease, lease_path, read_lease
from scaletrain.launch.squeue import Queued
from scaletrain.monitors import names
from scaletrain.monitors.metrics_sample import Sample, find_last, read_sample, read_tail
from scaletrain.monitors.run_records import USED, Record, RunRecords, read_what_is_there


@dataclass(frozen=True)
class Observed:
    """What is known of a run at one moment.

    Attributes:
        name: The run's name.
        now_s: The moment, as Unix time in seconds.
        records: What the run left; its lines may each stand for several steps.
        is_exact: Whether each of them stands for itself.
        tail: The last lines of metrics.jsonl, whole.
        evaluation: The last line with a validation loss.
        config: The resolved configuration; empty where it is missing or torn.
        jobs: Lines of job.jsonl; none where the run was started by hand.
        lease: Who owns the run, alive or not.
        heartbeat_age_s: Since the owner's last sign of life.
        free_bytes: Room where checkpoints go.
        queued: What Slurm says of the job.
    """

    name: str
    now_s: float
    records: RunRecords
    is_exact: bool = True
    tail: Sequence[Record] = ()
    evaluation: Record | None = None
    config: Mapping[str, Any] | None = None
    jobs: Sequence[Record] = ()
    lease: Lease | None = None
    heartbeat_age_s: float | None = None
    free_bytes: int | None = None
    queued: Queued | None = None

    @property
    def job_id(self) -> str | None:
        """Slurm's number of the last job that the run had; None where it was started by hand since."""
        if self.lease is not None and self.records.is_running:
            return self.lease.job_id
        return next((str(job["job_id"]) for job in reversed(self.jobs) if job.get("job_id")), None)

    def setting(self, key: str) -> Any:
        """A value of the configuration by its dotted key; None where it is not known."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value


def observe(run_dir: Path) -> Observed:
    """Looks at a run.

    Args:
        run_dir: Its folder; the run may be under way, or not have come to a step yet.

    Returns:
        What is known of it, without what the queue says.

    Raises:
        ConfigError: The folder holds no run, or cannot be read.
    """
    if not run_dir.is_dir():
        raise ConfigError(f"--run_dir {run_dir} is no folder; give the one that train.py has as --run_dir")
    metrics = run_dir / "metrics.jsonl"
    samples: list[Sample] = []

    def sampled(path: Path) -> Sequence[Record]:
        samples.append(read_sample(path, USED))
        return samples[-1].lines

    records = read_what_is_there(run_dir, sampled)
    try:
        config, jobs = read_config(run_dir), read_events(run_dir / "job.jsonl")
        tail, evaluation = read_tail(metrics), find_last(metrics, names.EVAL_LOSS)
    except OSError as error:
        raise ConfigError(f"--run_dir {run_dir} cannot be read: {error.strerror or error}") from None
    lease = read_lease(run_dir)
    if not (records.events or records.lines or records.claims or records.unclaimed or jobs or lease):
        raise ConfigError(
            f"--run_dir {run_dir} holds no run: neither events.jsonl nor metrics.jsonl nor job.jsonl nor a start in "
            "exit/ is there; give the folder that train.py has as --run_dir"
        )
    now_s = time.time()
    return Observed(
        run_dir.absolute().name,
        now_s,
        records,
        samples[-1].is_exact,
        tail,
        evaluation,
        config,
        jobs,
        lease,
        _age_s(lease_path(run_dir), now_s),
        _free_bytes(run_dir / "checkpoints"),
    )


def read_config(run_dir: Path) -> Mapping[str, Any]:
    """Reads the resolved configuration of a run, without checking it.

    Args:
        run_dir: The run's folder.

    Returns:
        It, as nested mappings; empty where it is missing or torn.

    Raises:
        OSError: It cannot be read.
    """
    try:
        content = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8", errors="replace"))
    except (FileNotFoundError, NotADirectoryError, yaml.YAMLError):
        return {}
    return content if isinstance(content, Mapping) else {}


def _age_s(path: Path, now_s: float) -> float | None:
    try:
        return max(0.0, now_s - path.stat().st_mtime)
    except OSError:
        return None


def _free_bytes(folder: Path) -> int | None:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None
