"""Signals to the batch script, as wishes that the supervisor looks for while it waits."""

import signal
from types import FrameType

from scaletrain.launch.slurm.commands import Slurm
from scaletrain.launch.slurm.decision import Asked
from scaletrain.launch.slurm.job import Job

TIME_SIGNAL = signal.SIGUSR2
"""What ``#SBATCH --signal=B:USR2@...`` sends before the time limit."""
_HEARD = (signal.SIGUSR2, signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Requests:
    """Hears signals from its making on; for the main thread."""

    def __init__(self, job: Job, slurm: Slurm, node: str) -> None:
        """Takes the signals over.

        Args:
            job: The job.
            slurm: To ask why a signal came.
            node: Name of the node that the batch script runs on.
        """
        self._job, self._slurm, self._node = job, slurm, node
        self._came: list[int] = []
        self._asked = Asked.NOBODY
        for number in _HEARD:
            signal.signal(number, self._note)

    def asked(self) -> Asked:
        """Who wants the job to end, as far as this process was told."""
        if self._came:
            number, self._came = self._came[-1], []
            if number in (TIME_SIGNAL, signal.SIGUSR1):
                found: Asked | None = Asked.TIME_LIMIT
            else:
                found = self._job.asked(self._slurm, self._node)
                # SIGTERM to a job that runs on: it will be preempted at the end of a time of grace.
                found = Asked.PREEMPTED if found in (None, Asked.NOBODY) else found
            self._asked = found or self._asked
        return self._asked

    def look(self) -> Asked:
        """Also asks Slurm, which sends no signal where it holds this node to be dead."""
        if self.asked() is Asked.NOBODY:
            found = self._job.asked(self._slurm, self._node)
            if found not in (None, Asked.NOBODY):
                self._asked = found
        return self._asked

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._came.append(number)
