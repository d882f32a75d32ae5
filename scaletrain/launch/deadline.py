"""When a job ends, as whoever started it says, and whether another step can still be saved before."""

from collections import deque
from collections.abc import Mapping

from scaletrain.errors import ConfigError

OWN_VARIABLE = "SCALETRAIN_JOB_END_TIME"
SLURM_VARIABLE = "SLURM_JOB_END_TIME"

_MARGIN = 2.0
"""A step and a save may take that many times what the longest took: the disk of a cluster has good and bad hours."""
_REMEMBERED_STEPS = 100


def job_end_s(environ: Mapping[str, str]) -> float | None:
    """When the job ends.

    Args:
        environ: The environment: ``SCALETRAIN_JOB_END_TIME``, else ``SLURM_JOB_END_TIME``, which Slurm sets from
            23.02 on; both in Unix seconds.

    Returns:
        Unix seconds; None where nobody says.

    Raises:
        ConfigError: ``SCALETRAIN_JOB_END_TIME`` is no number.
    """
    own, slurm = environ.get(OWN_VARIABLE, ""), environ.get(SLURM_VARIABLE, "")
    if own:
        found = _positive(own)
        if found is None:
            raise ConfigError(f"{OWN_VARIABLE}={own} is no time; give Unix seconds, as date +%s prints them")
        return found
    return _positive(slurm)  # a text there, such as Unknown, is no mistake of the user's


def hard_end_s(environ: Mapping[str, str], exit_by_s: float) -> float | None:
    """When a rank that still runs is ended.

    Args:
        environ: As for ``job_end_s``.
        exit_by_s: Seconds before the job's end; 0 for never.

    Returns:
        Unix seconds; None for never.

    Raises:
        ConfigError: As ``job_end_s``.
    """
    end_s = job_end_s(environ)
    return None if end_s is None or not exit_by_s else end_s - exit_by_s


class Deadline:
    """Tells at each border between steps whether the next one, and the save after it, may come too late."""

    def __init__(self, end_s: float | None) -> None:
        """Begins before the first step.

        Args:
            end_s: When the process is ended, in Unix seconds; None for never.
        """
        self._end_s = end_s
        self._border_s: float | None = None
        self._durations_s: deque[float] = deque(maxlen=_REMEMBERED_STEPS)

    def is_near(self, now_s: float, save_s: float) -> bool:
        """Whether to save now; asked once at each border.

        Args:
            now_s: The time in Unix seconds.
            save_s: Duration of the last save, in seconds.

        Returns:
            Whether less time is left than twice what the longest of the last steps, with all that came between it and
            the next, and the last save took together.
        """
        if self._border_s is not None:
            self._durations_s.append(now_s - self._border_s)
        self._border_s = now_s
        if self._end_s is None:
            return False
        return self._end_s - now_s < _MARGIN * (max(self._durations_s, default=0.0) + save_s)


def _positive(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0 < number < float("inf") else None
