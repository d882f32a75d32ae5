"""When a job ends, as whoever started it says, and whether another step can still be saved before."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from scaletrain.errors import ConfigError
from scaletrain.launch.events import read_events

OWN_VARIABLE = "SCALETRAIN_JOB_END_TIME"
SLURM_VARIABLE = "SLURM_JOB_END_TIME"

UNKNOWN_SAVE_S = 120.0
"""Duration of a save, in seconds, where none of this run was timed yet."""

_MARGIN = 2.0
"""A step and a save may take that many times what the longest took: the disk of a cluster has good and bad hours."""
_REMEMBERED_STEPS = 100
_REMEMBERED_SAVES = 10
_LONGEST_JOB_S = 366 * 86400.0


def job_end_s(environ: Mapping[str, str], now_s: float) -> float | None:
    """When the job ends.

    Args:
        environ: The environment: ``SCALETRAIN_JOB_END_TIME``, else ``SLURM_JOB_END_TIME``, which Slurm sets from
            23.02 on; both in Unix seconds.
        now_s: The time in Unix seconds.

    Returns:
        Unix seconds; None where nobody says, or Slurm's is over and so was another job's.

    Raises:
        ConfigError: ``SCALETRAIN_JOB_END_TIME`` is no number, is over, or lies more than a year ahead.
    """
    own = environ.get(OWN_VARIABLE, "")
    if own:
        return _own_end_s(own, now_s)
    found = _positive(environ.get(SLURM_VARIABLE, ""))  # a text there, such as Unknown, is no mistake of the user's
    return None if found is None or found <= now_s else found


def is_stale(environ: Mapping[str, str], now_s: float) -> bool:
    """Whether Slurm's end of the job is over, as in a shell that has kept the variables of an earlier job.

    Args:
        environ: The environment.
        now_s: The time in Unix seconds.

    Returns:
        Whether it is over, and would count.
    """
    found = _positive(environ.get(SLURM_VARIABLE, ""))
    return not environ.get(OWN_VARIABLE) and found is not None and found <= now_s


def hard_end_s(environ: Mapping[str, str], exit_by_s: float, now_s: float) -> float | None:
    """When a rank that still runs is ended.

    Args:
        environ: As for ``job_end_s``.
        exit_by_s: Seconds before the job's end; 0 for never.
        now_s: The time in Unix seconds.

    Returns:
        Unix seconds, which may be over where the job's end is near; None for never.

    Raises:
        ConfigError: As ``job_end_s``.
    """
    end_s = job_end_s(environ, now_s) if exit_by_s else None
    return None if end_s is None else end_s - exit_by_s


def shown(unix_s: float) -> str:
    """A time for people, in UTC: nodes need not agree about their zone."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def recent_saves_s(events: Path) -> list[float]:
    """How long the last saves to the shared place took, in all starts of a run.

    Args:
        events: The run's events.jsonl.

    Returns:
        Seconds, oldest first; none where nothing is known.
    """
    try:
        saves = [event for event in read_events(events) if event.get("event") == "save"]
    except OSError:
        return []
    durations = [event.get("seconds") for event in saves if event.get("tier", "shared") == "shared"]
    return [float(one) for one in durations if isinstance(one, int | float) and 0 < one < math.inf][-_REMEMBERED_SAVES:]


class Deadline:
    """Tells at each border between steps whether the next one, and the save after it, may come too late."""

    def __init__(self, end_s: float | None, saves_s: Sequence[float] = ()) -> None:
        """Begins before the first step.

        Args:
            end_s: When the process is ended, in Unix seconds; None for never.
            saves_s: Durations of saves in earlier starts, in seconds.
        """
        self._end_s = end_s
        self._begun_s: float | None = None
        self._border_s: float | None = None
        self._durations_s: deque[float] = deque(maxlen=_REMEMBERED_STEPS)
        self._saves_s: deque[float] = deque(saves_s, maxlen=_REMEMBERED_SAVES)
        self._last_save_s = 0.0

    def is_near(self, now_s: float, save_s: float) -> bool:
        """Whether to save now; asked once at each border.

        Before the first step there is nothing to save, and a start that ended there would bring the run no further.

        Args:
            now_s: The time in Unix seconds.
            save_s: Duration of the last save in this start, in seconds; 0 before the first.

        Returns:
            Whether less time is left than twice what the longest of the last steps, with all that came between it and
            the next, and the longest of the last saves took together. Where no save was timed yet,
            ``UNKNOWN_SAVE_S`` counts, but for no more than half of the time that this start has.
        """
        if save_s not in (0.0, self._last_save_s):
            self._saves_s.append(save_s)
            self._last_save_s = save_s
        if self._border_s is None:
            self._begun_s = self._border_s = now_s
            return False
        self._durations_s.append(now_s - self._border_s)
        self._border_s = now_s
        if self._end_s is None or self._begun_s is None:
            return False
        unknown_s = min(UNKNOWN_SAVE_S, (self._end_s - self._begun_s) / 2 / _MARGIN)
        return self._end_s - now_s < _MARGIN * (max(self._durations_s) + max(self._saves_s, default=unknown_s))


def _own_end_s(text: str, now_s: float) -> float:
    given, rule = f"{OWN_VARIABLE}={text}", "give Unix seconds, as date +%s prints them"
    found = _positive(text)
    if found is None:
        raise ConfigError(f"{given} is no time; {rule}")
    if found > now_s + _LONGEST_JOB_S:
        raise ConfigError(f"{given} lies more than a year ahead; {rule} (not milliseconds)")
    if found <= now_s:
        raise ConfigError(
            f"{given} is over: the job ended {now_s - found:.0f} s ago, at {shown(found)}; set it anew in each job, in "
            "Unix seconds, or unset it"
        )
    return found


def _positive(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0 < number < float("inf") else None
