"""Which nodes have failed lately, remembered by all jobs: a small file for each failure, so that nothing is locked."""

import json
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from scaletrain.files import replace_text

REPEATED = 2
"""Failures within the window from which a node is avoided."""
DAY_S = 86400.0


@dataclass(frozen=True)
class Failure:
    """One failure of a node.

    Attributes:
        node: Slurm's name of it.
        time_s: When, in Unix seconds.
        job_id: In which job.
        reason: Why it was held to be sick.
    """

    node: str
    time_s: float
    job_id: str
    reason: str


class Ledger:
    """The failures of nodes within a window of days.

    Args:
        folder: Where the files lie, on a file system that all nodes see.
        days: How long a failure counts.
    """

    def __init__(self, folder: Path, days: float) -> None:
        self.folder = folder
        self._days = days

    def record(self, failure: Failure) -> None:
        """Remembers a failure; one of the same node in the same job within a minute is the same one.

        Raises:
            OSError: The folder cannot be written.
        """
        known = [one for one in self.failures(failure.time_s) if one.node == failure.node]
        if any(one.job_id == failure.job_id and abs(failure.time_s - one.time_s) < 60 for one in known):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{failure.node}-{int(failure.time_s * 1000)}-{failure.job_id}.json"
        replace_text(path, json.dumps(failure.__dict__) + "\n")

    def failures(self, now_s: float | None = None) -> list[Failure]:
        """The failures that count, oldest first; a file that cannot be read is left out.

        Args:
            now_s: The time in Unix seconds; now by default.
        """
        now_s = time.time() if now_s is None else now_s
        found = []
        for path in self.folder.glob("*.json") if self.folder.is_dir() else ():
            try:
                failure = Failure(**json.loads(path.read_text()))
                counts = now_s - failure.time_s <= self._days * DAY_S
            except (OSError, ValueError, TypeError):
                continue
            if counts:
                found.append(failure)
        return sorted(found, key=lambda one: one.time_s)

    def avoided(self, now_s: float | None = None) -> dict[str, str]:
        """Nodes that have failed repeatedly, with what is known of it.

        Args:
            now_s: The time in Unix seconds; now by default.
        """
        by_node: dict[str, list[Failure]] = defaultdict(list)
        for failure in self.failures(now_s):
            by_node[failure.node].append(failure)
        return {
            node: f"failed {len(all_of)} times in {self._days:g} days, last in job {all_of[-1].job_id}: "
            f"{all_of[-1].reason} (delete {self.folder}/{node}-*.json once it is mended)"
            for node, all_of in by_node.items()
            if len(all_of) >= REPEATED
        }
