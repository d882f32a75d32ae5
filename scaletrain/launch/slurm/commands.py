"""Slurm's own commands, as a job uses them on itself: the edge at which decisions become deeds."""

import logging
import subprocess
import time
from collections.abc import Sequence

logger = logging.getLogger(__name__)

_ANSWER_S = 30.0
"""Longest wait for a command that only asks: a controller under load takes seconds."""
_INSIST_S = 20.0
"""How long a deed is tried again: less than Slurm's KillWait (30 s by default), after which this process is gone."""
_AGAIN_S = 0.5
_LONGEST_PAUSE_S = 5.0
_DONE = "Job is pending execution"
"""What Slurm says of a job that it has requeued, where the answer to that was struck down by its signal."""
_NEVER = ("disabled", "Invalid job id", "Access/permission")
"""What Slurm says where it will not do a thing later either, as with --no-requeue."""
SOONEST_S = 15.0
"""Seconds until a requeued job may start: one that is due before Slurm has cleaned up is put off by two minutes."""


class Slurm:
    """Asks Slurm, and tells it what to do."""

    def show_job(self, job_id: str) -> dict[str, str]:
        """What Slurm knows of a job.

        Args:
            job_id: Its number.

        Returns:
            The fields of ``scontrol show job`` by name; none where Slurm does not answer or does not know it.
        """
        # The first task of an array has the number of the array, for which all tasks are shown.
        shown = map(_fields, self._ask("scontrol", "--oneliner", "show", "job", job_id).splitlines())
        return next((fields for fields in shown if fields.get("JobId") == job_id), {})

    def expand(self, hostlist: str) -> list[str]:
        """The names in a host list such as ``n[1-3,7]``; none for an empty one."""
        return self._ask("scontrol", "show", "hostnames", hostlist).split() if hostlist else []

    def addresses(self, nodes: Sequence[str]) -> dict[str, str]:
        """The address of each node as Slurm uses it; its name where Slurm says nothing."""
        found = {node: node for node in nodes}
        for line in self._ask("scontrol", "--oneliner", "show", "node", ",".join(nodes)).splitlines():
            fields = _fields(line)
            if fields.get("NodeName") in found:
                found[fields["NodeName"]] = fields.get("NodeAddr", fields["NodeName"])
        return found

    def unusable(self, nodes: Sequence[str]) -> dict[str, str]:
        """Nodes that Slurm holds to be down, failed, drained or out of reach, with their state and its reason."""
        found = {}
        for line in self._ask("scontrol", "--oneliner", "show", "node", ",".join(nodes)).splitlines():
            fields = _fields(line)
            state = fields.get("State", "")
            if any(word in state for word in ("DOWN", "FAIL", "DRAIN", "NOT_RESPONDING")) or state.endswith("*"):
                found[fields["NodeName"]] = f"Slurm has it as {state}"
        return found

    def partition_nodes(self, partition: str) -> int | None:
        """How many nodes a partition has, whatever their state; None where Slurm does not say."""
        shown = _fields(self._ask("scontrol", "--oneliner", "show", "partition", partition)) if partition else {}
        total = shown.get("TotalNodes", "")
        return int(total) if total.isdigit() else None

    def requeue(self, queue_name: str, excluded: Sequence[str], delay_s: float, insist_s: float = _INSIST_S) -> bool:
        """Gives the job back to the queue; Slurm then ends this process within KillWait.

        The nodes to avoid and the time of its start can be set only once it is pending, and only as long as this
        process lives.

        Args:
            queue_name: The job; a task of an array as ``17_2``, or its other tasks are requeued as well.
            excluded: All nodes that it must avoid from now on.
            delay_s: Seconds until it may start, at least ``SOONEST_S``; without that Slurm waits two minutes.
            insist_s: Seconds for which it is tried again, as while the controller is away.

        Returns:
            Whether Slurm took the job back.
        """
        if not self._insist(time.monotonic() + insist_s, "scontrol", "requeue", queue_name):
            return False
        until_s = time.monotonic() + _INSIST_S  # only from now on is this process about to be ended
        changes = [f"StartTime=now+{round(max(SOONEST_S, delay_s))}"]
        if excluded:
            changes.insert(0, f"ExcNodeList={','.join(excluded)}")
        if not self._insist(until_s, "scontrol", "update", f"JobId={queue_name}", *changes):
            logger.warning("the requeued job could not be told: %s", " ".join(changes))
        return True

    def drain(self, node: str, reason: str) -> bool:
        """Asks Slurm to give a node no more jobs.

        Returns:
            Whether it does: only operators may ask.
        """
        text = reason.replace('"', "'")[:200]
        return self._run("scontrol", "update", f"NodeName={node}", "State=DRAIN", f"Reason=scaletrain: {text}") == 0

    def signal_step(self, job_id: str, step: str, name: str) -> bool:
        """Sends a signal to all processes of the steps of a name.

        Args:
            job_id: The job.
            step: Number of the step.
            name: Such as ``USR1`` or ``KILL``.
        """
        return self._run("scancel", f"--signal={name}", f"{job_id}.{step}") == 0

    def _ask(self, *command: str) -> str:
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_S, stdin=subprocess.DEVNULL)
        except (OSError, subprocess.TimeoutExpired) as error:
            logger.warning("%s: %s", " ".join(command), error)
            return ""
        if done.returncode != 0:
            logger.debug("%s: %s", " ".join(command), done.stderr.strip())
        return done.stdout

    def _run(self, *command: str) -> int:
        return self._try(*command)[0]

    def _try(self, *command: str) -> tuple[int, str]:
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_S, stdin=subprocess.DEVNULL)
        except (OSError, subprocess.TimeoutExpired) as error:
            logger.warning("%s: %s", " ".join(command), error)
            return 1, ""
        if done.returncode > 0:  # less than zero: it got the signal that was meant for the whole job
            logger.warning("%s: %s", " ".join(command), done.stderr.strip())
        return done.returncode, done.stderr

    def _insist(self, until_s: float, *command: str) -> bool:
        pause_s = _AGAIN_S
        while True:
            code, complaint = self._try(*command)
            if code == 0 or _DONE in complaint:
                return True
            if time.monotonic() > until_s or any(words in complaint for words in _NEVER):
                return False
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _fields(line: str) -> dict[str, str]:
    """Words such as ``Name=value``; a value with spaces keeps its first word only."""
    pairs = (word.partition("=") for word in line.split())
    return {name: value for name, equals, value in pairs if equals}
