"""All that a run directory tells about where the run's time went: events, raw metrics, claims and verdicts."""

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scaletrain.errors import ConfigError
from scaletrain.launch.events import read_events
from scaletrain.launch.heartbeat import STALE_S, lease_path, read_lease
from scaletrain.launch.lease import is_alive
from scaletrain.launch.verdicts import UNCLAIMED, read_verdict
from scaletrain.monitors import names
from scaletrain.monitors.jsonl_writer import read_records

Record = Mapping[str, Any]

USED = (
    "step",
    "attempt",
    "time_s",
    names.TRAIN_LOSS,
    names.PERF_STEP_TIME_S,
    names.PERF_DATA_WAIT_S,
    names.EVAL_LOSS,
)
"""Keys of a line of metrics.jsonl that a run's account is computed from."""


@dataclass(frozen=True)
class RunRecords:
    """What a run left behind; times are Unix times in seconds.

    Attributes:
        events: Lines of events.jsonl, in their order.
        lines: Lines of metrics.jsonl, in their order, those of steps that were done again included; of each, what the
            account of a run needs.
        claims: By attempt, when it was numbered; None where nothing tells.
        verdicts: By attempt, what the files of its ranks say.
        unclaimed: What the ranks of starts say that ended before they had a number, oldest first.
        is_running: Whether the run's owner lives.
        last_sign_s: The owner's last sign of life; None where the run was given back.
    """

    events: Sequence[Record]
    lines: Sequence[Record]
    claims: Mapping[int, float | None] = field(default_factory=dict)
    verdicts: Mapping[int, Sequence[Record]] = field(default_factory=dict)
    unclaimed: Sequence[Record] = ()
    is_running: bool = False
    last_sign_s: float | None = None


def read_run(run_dir: Path) -> RunRecords:
    """Reads a run directory, also one whose run goes on.

    Args:
        run_dir: The run's folder.

    Returns:
        Its records; whatever is missing or torn is left out.

    Raises:
        ConfigError: It is no run's folder, or it cannot be read.
    """
    records = read_what_is_there(run_dir, _lines)
    if not (records.events or records.lines or records.claims or records.unclaimed):
        raise ConfigError(
            f"--run_dir {run_dir} holds no run: neither events.jsonl nor metrics.jsonl nor exit/ is there"
        )
    return records


def read_what_is_there(run_dir: Path, read_lines: Callable[[Path], Sequence[Record]]) -> RunRecords:
    """Reads a folder that may hold a run, or a part of one.

    Args:
        run_dir: The folder.
        read_lines: Reads the lines of metrics.jsonl, which may be missing.

    Returns:
        Its records; none where there is no run.

    Raises:
        ConfigError: It cannot be read.
    """
    # Looked at first: a run that ends meanwhile is told as running, and not as one that died.
    is_running = _is_running(run_dir)
    try:
        last_sign_s = time.time() if is_running else lease_path(run_dir).stat().st_mtime
    except OSError:
        last_sign_s = None
    try:
        events, lines = read_events(run_dir / "events.jsonl"), read_lines(run_dir / "metrics.jsonl")
        folders = [path for path in _folders(run_dir / "exit") if path.name.isdecimal()]
        unclaimed = sorted(_verdicts((run_dir / "exit" / UNCLAIMED).glob("*.json")), key=_told_s)
    except OSError as error:
        raise ConfigError(f"--run_dir {run_dir} cannot be read: {error.strerror or error}") from None
    return RunRecords(
        events,
        lines,
        {int(folder.name): _claim_s(folder) for folder in folders},
        {
            int(folder.name): _verdicts(path for path in folder.glob("*.json") if path.stem.isdecimal())
            for folder in folders
        },
        unclaimed,
        is_running,
        last_sign_s,
    )


def number(value: object) -> float | None:
    """A value as a finite number; None where it is none."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def _is_running(run_dir: Path) -> bool:
    lease = read_lease(run_dir)
    if lease is None:
        return False
    try:
        return is_alive(run_dir, lease)
    except OSError:  # a folder that this user may read only: the clocks of two machines have to do
        try:
            return time.time() - lease_path(run_dir).stat().st_mtime < STALE_S
        except OSError:
            return False


def _folders(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir()) if path.is_dir() else []


def _lines(path: Path) -> list[Record]:
    return list(read_records(path, USED)) if path.exists() else []


def _claim_s(folder: Path) -> float | None:
    try:
        content = json.loads((folder / "launch.json").read_text())
        return number(content["time_s"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _verdicts(paths: Iterable[Path]) -> list[Record]:
    found = [read_verdict(path) for path in sorted(paths)]
    return [content for content in found if content is not None]


def _told_s(verdict: Record) -> float:
    return number(verdict.get("time_s")) or 0.0
