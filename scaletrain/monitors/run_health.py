"""What all nodes of a run tell of their health: a file of each in the run directory, and health.json made of them."""

import contextlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from scaletrain.files import replace_text
from scaletrain.hardware.rules import SEVERITIES
from scaletrain.monitors import names
from scaletrain.monitors.node_health import NodeHealth, Told

logger = logging.getLogger(__name__)

REPORT = "health.json"
_FOLDER = "health"
_MOST_RANKS = 16
"""GPUs of a run up to which each has metrics of its own; health.json has those of all."""

_OVER_GPUS: Mapping[str, tuple[str, Callable[[list[float]], float]]] = {
    names.GPU_MAX_TEMP_C: ("temp_c", max),
    names.GPU_MAX_MEMORY_TEMP_C: ("memory_temp_c", max),
    names.GPU_MEAN_POWER_W: ("power_w", fmean),
    names.GPU_MIN_CLOCK_MHZ: ("clock_mhz", min),
    names.GPU_MIN_UTILIZATION_PERCENT: ("utilization_percent", min),
    names.GPU_MAX_MEMORY_USED_GIB: ("memory_used_gib", max),
}
_OVER_HOSTS: Mapping[str, tuple[str, Callable[[list[float]], float]]] = {
    names.HOST_MAX_MEMORY_USED_SHARE: ("host.memory.used_share", max),
    names.HOST_MAX_MEMORY_STALLED_SHARE: ("host.memory.stalled_full", max),
    names.HOST_MAX_STORAGE_STALLED_SHARE: ("host.storage.stalled_full", max),
    names.HOST_OOM_KILLS: ("host.oom_kills", sum),
    names.HOST_MIN_RUN_DIR_FREE_GIB: ("host.folder.run_dir.free_gib", min),
}
_OF_EACH = tuple(key for key, _ in _OVER_GPUS.values())


def history_path(run_dir: Path, host: str) -> Path:
    """File in which a node's asks for repairs stand.

    It lies in the run directory, as a node's own disk may not survive its repair, and each node has its own, as such a
    file has one writer.

    Args:
        run_dir: The run's folder.
        host: The node.
    """
    return run_dir / _FOLDER / "history" / f"{host}.json"


def write_node(run_dir: Path, attempt: int, node: NodeHealth) -> None:
    """Leaves what a node tells where rank 0 finds it.

    Args:
        run_dir: The run's folder.
        attempt: Which start of the run.
        node: What it tells.

    Raises:
        OSError: It cannot be written.
    """
    path = _path(run_dir, attempt, node.rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, node.to_json())


def read_nodes(run_dir: Path, attempt: int) -> list[NodeHealth]:
    """What the nodes have told last, by the rank that looks after each; what cannot be read is left out.

    Args:
        run_dir: The run's folder.
        attempt: Which start of the run.
    """
    nodes = [_read(path) for path in (run_dir / _FOLDER / str(attempt)).glob("*.json")]
    return sorted((node for node in nodes if node is not None), key=lambda node: node.rank)


def read_node(run_dir: Path, attempt: int, rank: int) -> NodeHealth | None:
    """What one node has told last; None where it cannot be read.

    Args:
        run_dir: The run's folder.
        attempt: Which start of the run.
        rank: The rank that looks after it.
    """
    return _read(_path(run_dir, attempt, rank))


def metrics_of(nodes: Sequence[NodeHealth], since_s: float) -> dict[str, float]:
    """Numbers over all GPUs and nodes, and in a small run those of each GPU.

    Args:
        nodes: What the nodes have told.
        since_s: What was told before this Unix time is too old.

    Returns:
        Metrics by name; what no node tells has none.
    """
    fresh = [node for node in nodes if node.time_s >= since_s]
    gpus = {rank: values for node in fresh for rank, values in node.gpus.items()}
    found = {
        **_over(_OVER_GPUS, gpus.values()),
        **_over(_OVER_HOSTS, (node.signals for node in fresh)),
    }
    if len(gpus) <= _MOST_RANKS:
        for rank, values in gpus.items():
            found |= {names.of_gpu(rank, key): float(values[key]) for key in _OF_EACH if key in values}
    return found


def write_report(run_dir: Path, attempt: int, nodes: Sequence[NodeHealth]) -> None:
    """Writes health.json: the findings that hold, the gravest first, and what each node tells.

    Args:
        run_dir: The run's folder.
        attempt: Which start of the run.
        nodes: What the nodes have told.

    Raises:
        OSError: It cannot be written.
    """
    findings = [one for node in nodes for one in node.current]
    findings.sort(key=lambda one: (-SEVERITIES.index(one.severity), one.since_s))
    content = {
        "attempt": attempt,
        "updated": _shown_time(max((node.time_s for node in nodes), default=0.0)),
        "findings": [_shown(one) for one in findings],
        "nodes": {
            node.host: {
                "looked": _shown_time(node.time_s),
                "driver": node.driver,
                "gpus": {f"rank {rank}": values for rank, values in node.gpus.items()},
                "host": node.signals,
            }
            for node in nodes
        },
    }
    replace_text(run_dir / REPORT, json.dumps(content, indent=1) + "\n")


class News:
    """Findings of all nodes of which rank 0 has not heard yet."""

    def __init__(self) -> None:
        self._heard: dict[int, int] = {}

    def take(self, nodes: Iterable[NodeHealth]) -> list[Told]:
        """The findings that are new since the call before, by node and then oldest first."""
        new = []
        for node in nodes:
            for one in node.told:
                if one.number > self._heard.get(node.rank, 0):
                    self._heard[node.rank] = one.number
                    new.append(one)
        return new


def _over(
    wanted: Mapping[str, tuple[str, Callable[[list[float]], float]]], told: Iterable[Mapping[str, Any]]
) -> dict[str, float]:
    every = list(told)
    values = {name: [float(one[key]) for one in every if key in one] for name, (key, _) in wanted.items()}
    return {name: float(wanted[name][1](found)) for name, found in values.items() if found}


def _shown(told: Told) -> dict[str, Any]:
    content = {
        "severity": told.severity,
        "host": told.host,
        "gpu": told.gpu_index,
        "rank": told.rank,
        "uuid": told.gpu_uuid,
        "action": told.action,
        "since": _shown_time(told.since_s),
        "rule": told.rule,
        "text": told.text,
    }
    return {key: value for key, value in content.items() if value is not None}


def _shown_time(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).isoformat(timespec="seconds")


def _path(run_dir: Path, attempt: int, rank: int) -> Path:
    return run_dir / _FOLDER / str(attempt) / f"{rank}.json"


def _read(path: Path) -> NodeHealth | None:
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        return NodeHealth.from_json(path.read_text(encoding="utf-8"))
    return None
