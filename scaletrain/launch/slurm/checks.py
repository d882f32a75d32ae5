"""The checks of a job's nodes before training, and what they say of each node."""

import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scaletrain.launch.slurm.bisection import Outcome, find_faulty
from scaletrain.launch.slurm.job import Job
from scaletrain.launch.slurm.ports import check_port
from scaletrain.launch.slurm.settings import Settings
from scaletrain.launch.slurm.steps import Step, node_python, srun_command

_CLOCK_LIMIT_S = 10.0
"""Longest difference of a clock: job ends and heartbeats are told in the clocks' time."""
_MIB = 32
_REPEATS = 5
_CONNECTION_S = 60.0
"""Time for an all-reduce, start of its processes included, unless CHECK_LIMIT_S is above three times that."""
_RESULT_S = 3.0  # a shared file system may show another node's file a moment later


@dataclass(frozen=True)
class Findings:
    """What checks found.

    Attributes:
        sick: Nodes that must not be used, with the reason.
        unclear: What is wrong without a node being to blame.
        failed: Nodes that fail together with most others, with the reason; none of them is blamed.
        suspects: Nodes of which one is to blame, and it cannot be told which.
        warnings: What a user should know.
        bandwidth_gb_s: Bus bandwidth of the all-reduce over all nodes; None where it was not measured.
    """

    sick: Mapping[str, str] = field(default_factory=dict)
    unclear: tuple[str, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    suspects: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    bandwidth_gb_s: float | None = None


class Checks:
    """Runs checks on nodes of a job.

    Args:
        job: The job.
        settings: Limits.
        folder: For results, on the shared file system.
        mounts: Folders to be seen in a container.
        is_asked: Whether somebody wants the job to end: checks are then broken off.
    """

    def __init__(
        self, job: Job, settings: Settings, folder: Path, mounts: Sequence[Path], is_asked: Callable[[], bool]
    ) -> None:
        self._job, self._settings, self._folder, self._mounts = job, settings, folder, mounts
        self._is_asked = is_asked
        self._log = folder / "checks.log"
        self._round = 0
        self._best_gb_s: float | None = None

    def check_nodes(self, nodes: Sequence[str]) -> Findings:
        """Checks each node by itself, all at the same time.

        A node that says nothing is asked once more alone: srun gives up all nodes of a step where one is out of reach.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        token = uuid.uuid4().hex
        (self._folder / "token").write_text(token)
        before_s = time.time()
        told = self._ask_nodes(token, [list(nodes)])
        missing = [node for node in nodes if node not in told]
        if missing and not self._is_asked():
            told |= self._ask_nodes(token, [[node] for node in missing])
        after_s = time.time()
        sick, warnings = {}, []
        for node in nodes:
            if node not in told:
                sick[node] = f"did not answer the node check within {self._settings.check_limit_s:g} s"
                continue
            failed = [f"{one['check']}: {one['detail']}" for one in told[node]["findings"] if one["status"] == "fail"]
            skew_s = max(before_s - told[node]["time_s"], told[node]["time_s"] - after_s, 0.0)
            if skew_s > _CLOCK_LIMIT_S:
                failed.append(f"clock: {skew_s:.0f} s off, where {_CLOCK_LIMIT_S:g} s are allowed; run NTP there")
            if failed:
                sick[node] = "; ".join(failed)
            warnings += [
                f"{node}: {one['check']}: {one['detail']}" for one in told[node]["findings"] if one["status"] == "warn"
            ]
        if len(nodes) > 1 and len(sick) > len(nodes) / 2:
            # Most nodes do not fall sick at once: what they share, such as the environment, is broken.
            told_of = f"{len(sick)} of {len(nodes)} nodes fail the node check, so none is blamed"
            first = next(iter(sick))
            unclear = f"{told_of}; {first}: {sick[first]}; output in {self._log}"
            return Findings(unclear=(unclear,), failed=sick, warnings=tuple(warnings))
        return Findings(sick, warnings=tuple(warnings))

    def check_connections(self, nodes: Sequence[str]) -> Findings:
        """All-reduces over all nodes, and where that is slow or wrong finds out whose fault it is."""
        if len(nodes) < 2 or self._is_asked():
            return Findings()
        outcome = self._probe([list(nodes)])[0]
        if outcome == "ok" or self._is_asked():
            return Findings(bandwidth_gb_s=self._best_gb_s)
        diagnosis = find_faulty(nodes, self._probe)
        words = {"slow": self._slow(), "silent": f"no all-reduce within {self._limit_s():g} s succeeds with it"}
        sick = {node: f"connection: {words[what]}" for node, what in diagnosis.faulty.items()}
        unclear = tuple(f"the all-reduce of {', '.join(group)} is {outcome}" for group in diagnosis.unclear)
        if not sick and not unclear:
            # It passed when it was tried in parts: a connection that is bad now and then.
            return Findings(warnings=(f"the all-reduce over all nodes was {outcome} once",))
        suspects = diagnosis.unclear[0] if len(diagnosis.unclear) == 1 else ()
        return Findings(sick, unclear, suspects=suspects)

    def _slow(self) -> str:
        return f"slower than MIN_BANDWIDTH_GB_S={self._settings.min_bandwidth_gb_s:g} with every other node"

    def _limit_s(self) -> float:
        limit_s = self._settings.check_limit_s
        return max(min(_CONNECTION_S, limit_s), limit_s / 3)

    def _ask_nodes(self, token: str, groups: Sequence[Sequence[str]]) -> dict[str, Any]:
        expectation = {
            "gpus": self._job.gpus,
            "shared_dir": str(self._folder),
            "token": token,
            "addresses": dict(self._job.addresses),
            "limit_s": self._settings.check_limit_s / 2,
            "rules": self._settings.check_rules,
        }
        command = [node_python(self._settings), "-m", "scaletrain.hardware.node_check", json.dumps(expectation)]
        self._run([(list(group), command) for group in groups], self._settings.check_limit_s)
        nodes = [node for group in groups for node in group]
        return self._results({node: self._folder / f"{node}.json" for node in nodes})

    def _probe(self, groups: Sequence[Sequence[str]]) -> list[Outcome]:
        """All-reduces within each of several groups at the same time."""
        self._round += 1
        tasks: list[tuple[list[str], list[str]]] = []
        results: dict[str, Path] = {}
        for number, group in enumerate(groups):
            plan_path = self._folder / f"exchange-{self._round}-{number}.json"
            result = self._folder / f"exchange-{self._round}-{number}-result"
            results |= {node: result.with_name(f"{result.name}-{node}.json") for node in group}
            plan = {
                "nodes": list(group),
                "addresses": dict(self._job.addresses),
                "port": check_port(int(self._job.job_id), self._round),
                "command": ["-m", "scaletrain.preflight.exchange"],
                "check": {
                    "nodes": len(group),
                    "gpus": self._job.gpus,
                    "mib": _MIB,
                    "repeats": _REPEATS,
                    "limit_s": self._limit_s(),
                    "result": str(result),
                },
            }
            plan_path.write_text(json.dumps(plan))
            command = [node_python(self._settings), "-m", "scaletrain.launch.slurm.node", str(plan_path)]
            tasks.append((list(group), command))
        self._run(tasks, self._limit_s() + 30)
        told = self._results(results)
        return [self._judge([told.get(node) for node in group]) for group in groups]

    def _judge(self, told: Sequence[Mapping[str, Any] | None]) -> Outcome:
        rates = [one.get("gb_per_s") for one in told if one is not None and one.get("correct")]
        measured = [float(rate) for rate in rates if rate is not None]
        if len(measured) < len(told):
            return "silent"
        self._best_gb_s = min(measured)
        return "ok" if min(measured) >= self._settings.min_bandwidth_gb_s else "slow"

    def _run(self, tasks: Sequence[tuple[list[str], list[str]]], limit_s: float) -> None:
        until_s = time.monotonic() + limit_s
        steps = [
            Step(srun_command(self._job, self._settings, "check", nodes, command, self._mounts), self._log)
            for nodes, command in tasks
        ]
        while any(step.poll() is None for step in steps) and time.monotonic() < until_s and not self._is_asked():
            time.sleep(0.1)
        for step in steps:
            step.end()

    def _results(self, paths: Mapping[str, Path]) -> dict[str, Any]:
        until_s = time.monotonic() + _RESULT_S
        found: dict[str, Any] = {}
        while len(found) < len(paths):
            for node, path in paths.items():
                try:
                    found[node] = json.loads(path.read_text())
                except (OSError, ValueError):
                    continue
            if time.monotonic() > until_s:
                break
            time.sleep(0.1)
        return found
