"""When a phase has lasted too long, and what a keeper must know to watch for it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from scaletrain.launch.hang.heartbeat import Beat, HeartbeatReader

_LATE_S = 30.0
"""Longest time for which nobody looks whether other ranks are in trouble."""
_LEAST_FACTOR = 2  # as of ``monitor.hang.factor``: what has lasted so long before is no hang


@dataclass(frozen=True)
class HangLimits:
    """Limits of how long a phase may last, in seconds.

    Attributes:
        factor: A phase may last this many times the longest that any rank has seen it last. Source: NVIDIA's
            resiliency extension, whose calculated time limits are 5 times the longest observed.
        first_s: Limit of a phase that has not been seen to end yet, such as the first step, which compiles.
        least_s: No limit of a phase that was seen to end is shorter: storage may be slow for a while.
        most_s: None of these is longer, but for twice the longest that was seen: the collectives have a limit of their
            own, and end without a name.
    """

    factor: float
    first_s: float
    least_s: float
    most_s: float

    def of(self, longest_s: float) -> float:
        """The limit of a phase.

        Args:
            longest_s: The longest that it was seen to last, in seconds; 0 where it was not seen to end.
        """
        if not longest_s:
            return self.first_s
        return min(max(self.factor * longest_s, self.least_s), max(self.most_s, _LEAST_FACTOR * longest_s))

    @property
    def late_s(self) -> float:
        """From here on it is looked whether other ranks are in trouble; well before the shortest limit."""
        return min(_LATE_S, min(self.least_s, self.first_s) / 2)


@dataclass(frozen=True)
class Watched:
    """What a keeper must know of its rank to watch it for hangs.

    Attributes:
        heartbeat: Descriptor of the heartbeat's memory.
        stacks: Descriptor of the memory that the rank writes its stacks to on a signal; see ``stacks``.
        limits: How long a phase may last.
        world_size: Ranks of the run.
        gpu: The rank's device, for people; empty where it has none.
        py_spy: The program that reads stacks from outside; empty where it is not installed.
        dumps: Folder for dumps of torch's flight recorder; empty where there are none.
    """

    heartbeat: int
    stacks: int
    limits: HangLimits
    world_size: int
    gpu: str = ""
    py_spy: str = ""
    dumps: str = ""

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Watched":
        """Takes back what ``to_json`` gave."""
        return cls(**{**content, "limits": HangLimits(**content["limits"])})


class StandingStill:
    """Counts for how long a rank has been in one phase.

    Only what was seen counts: time for which the one who looks stood still too, such as that of a job that Slurm has
    suspended, does not.
    """

    def __init__(self, reader: HeartbeatReader, longest_gap_s: float, seconds: float = 0.0) -> None:
        """Looks for the first time later.

        Args:
            reader: The heartbeat.
            longest_gap_s: Most that may count between two looks.
            seconds: What was counted before, of the phase that the rank is in now.
        """
        self._reader = reader
        self._longest_gap_s = longest_gap_s
        self._marks = reader.read().marks
        self._seconds = seconds
        self._looked_s: float | None = None

    def look(self, now_s: float) -> tuple[Beat, float]:
        """What the rank does, and for how long it was seen to.

        Args:
            now_s: The time, on the monotonic clock.
        """
        beat = self._reader.read()
        if beat.marks != self._marks:
            self._marks, self._seconds = beat.marks, 0.0
            self._looked_s = max(beat.since_s, now_s - self._longest_gap_s)
        elif self._looked_s is None:
            self._looked_s = now_s
        self._seconds += min(max(0.0, now_s - self._looked_s), self._longest_gap_s)
        self._looked_s = now_s
        return beat, self._seconds
