"""What the jobs of a run did: ``job.jsonl`` in its folder, from which progress and crash loops are told."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scaletrain.launch.events import append_event, read_events


class Journal:
    """The diary of a run's jobs.

    Args:
        run_dir: The run's folder.
        job_id: The job that writes.
        restart: How many times it was requeued.
    """

    def __init__(self, run_dir: Path, job_id: str, restart: int) -> None:
        self._path = run_dir / "job.jsonl"
        self._events = run_dir / "events.jsonl"
        self._job = {"job_id": job_id, "restart": restart}

    def write(self, event: str, **fields: Any) -> None:
        """Adds a line; where the disk is full nothing is written, since what is done matters more."""
        try:
            append_event(self._path, event, **self._job, **fields)
        except OSError as error:
            print(f"warning: {self._path} cannot be written: {error.strerror}", file=sys.stderr, flush=True)

    def saved_step(self) -> int:
        """The newest step that the run has saved; 0 where it has not saved yet."""
        saves = [event.get("step") for event in read_events(self._events) if event.get("event") == "save"]
        return max((step for step in saves if isinstance(step, int)), default=0)

    def launches(self) -> int:
        """Launches so far, of all jobs."""
        return sum(event.get("event") == "launch" for event in read_events(self._path))

    def without_progress(self, saved_step: int) -> int:
        """Launches of this job in a row, the last one among them, that saved nothing new.

        Args:
            saved_step: What ``saved_step`` returns now.
        """
        return count_without_progress(self._of_this_job(), saved_step)

    def history(self) -> list[str]:
        """A line for each launch, oldest first."""
        lines, nodes = [], {}
        for event in read_events(self._path):
            if event.get("event") == "launch":
                nodes[event.get("launch")] = ",".join(event.get("nodes", ()))
            elif event.get("event") == "launch_end":
                number = event.get("launch")
                lines.append(
                    f"launch {number} on {nodes.get(number, '?')}: {event.get('verdict')}, saved up to step "
                    f"{event.get('saved_step')}: {event.get('reason')}"
                )
        return lines

    def suspicions(self) -> list[tuple[str, ...]]:
        """Groups of nodes of which one was to blame, in earlier starts of this job."""
        return [tuple(event.get("nodes", ())) for event in self._of_this_job() if event.get("event") == "suspicion"]

    def blamed(self, since_s: float = 0.0) -> dict[str, str]:
        """Nodes that this job has left out for reasons of its own, with the reason; without those cleared since.

        Args:
            since_s: What was before does not count; in Unix seconds.
        """
        found: dict[str, str] = {}
        for event in self._of_this_job():
            if event.get("time_s", 0.0) < since_s:
                continue
            if event.get("event") == "sick_node" and not event.get("by_slurm"):
                found[str(event.get("node"))] = str(event.get("reason"))
            elif event.get("event") == "suspicion":
                found = {node: reason for node, reason in found.items() if node not in event.get("cleared", ())}
        return found

    def fruitless_starts(self) -> int:
        """Starts of this job in a row, up to now, in which nothing could be launched."""
        count = 0
        for event in reversed(self._of_this_job()):
            if event.get("event") == "launch":
                break
            count += event.get("event") == "fruitless_start"
        return count

    def _of_this_job(self) -> list[dict[str, Any]]:
        """Its lines: what is submitted anew, after somebody has mended something, begins with a clean record."""
        return [event for event in read_events(self._path) if event.get("job_id") == self._job["job_id"]]


def count_without_progress(events: Sequence[dict[str, Any]], saved_step: int) -> int:
    """Counts the launches since the last one that was of use.

    A launch that was preempted or requeued by others neither counts nor is progress. One whose end is not told,
    because its supervisor was gone, counts.

    Args:
        events: Lines of ``job.jsonl``, oldest first; a launch tells the step saved before it.
        saved_step: The step saved by now.

    Returns:
        Their number.
    """
    asked = {
        event.get("launch") for event in events if event.get("event") == "launch_end" and event.get("was_asked") is True
    }
    count = 0
    for event in reversed(events):
        if event.get("event") != "launch":
            continue
        if event.get("saved_step", 0) < saved_step:
            break
        count += event.get("launch") not in asked
    return count
