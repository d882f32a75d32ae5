"""How long a rank computes in a step: by CPU or device time, in which it does not wait for other ranks."""

import math
import time
from collections.abc import Sequence
from statistics import median
from typing import Protocol

import torch


class ComputeClock(Protocol):
    """Is told where a step and its forward passes begin and end."""

    def begin_step(self) -> None:
        """A step begins; what the one before has measured is forgotten."""

    def begin_forward(self) -> None:
        """A forward pass begins."""

    def end_forward(self) -> None:
        """A forward pass has ended, or was handed over to the device."""

    def end_step(self) -> None:
        """A step has ended."""

    def read_s(self) -> float:
        """Seconds that the last step computed; the device has done all its work. NaN where that cannot be told."""

    def typical_s(self, steps_s: Sequence[float]) -> float:
        """What a step takes this rank, told from some of them."""


class HostClock:
    """Of a rank that computes on a CPU: the CPU time of the thread that calls it.

    A thread that waits for a collective, for data or for a core takes none. Gloo's threads, which add up what others
    have sent, are not counted.
    """

    def __init__(self) -> None:
        self._begin_s = self._end_s = 0.0

    def begin_step(self) -> None:
        """Reads the clock."""
        self._begin_s = time.thread_time()

    def begin_forward(self) -> None:
        """Nothing: the whole step counts."""

    def end_forward(self) -> None:
        """Nothing: the whole step counts."""

    def end_step(self) -> None:
        """Reads the clock."""
        self._end_s = time.thread_time()

    def read_s(self) -> float:
        """CPU time of the last step, in seconds."""
        return self._end_s - self._begin_s

    def typical_s(self, steps_s: Sequence[float]) -> float:
        """The lowest decile: what others do to the caches and clocks of a core only ever adds to CPU time."""
        return sorted(steps_s)[(len(steps_s) - 1) // 10]


class DeviceClock:
    """Of a rank that computes on a GPU: the device's own time of the forward passes.

    They use no collective under ZeRO 0 to 2, whereas the backward pass reduces gradients on the way. The events are
    read after the step, when the device has passed them, so that nothing waits for them.
    """

    def __init__(self) -> None:
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._passes = 0

    def begin_step(self) -> None:
        """Forgets the step before; its events are used again."""
        self._passes = 0

    def begin_forward(self) -> None:
        """Has the device note the time when it comes here."""
        if self._passes == len(self._events):
            self._events.append((_event(), _event()))
        self._events[self._passes][0].record()

    def end_forward(self) -> None:
        """Has the device note the time when it comes here."""
        self._events[self._passes][1].record()
        self._passes += 1

    def end_step(self) -> None:
        """Nothing: the backward pass does not count."""

    def read_s(self) -> float:
        """Device time of the last step's forward passes, in seconds."""
        return sum(float(begin.elapsed_time(end)) for begin, end in self._events[: self._passes]) / 1000

    def typical_s(self, steps_s: Sequence[float]) -> float:
        """The median: nobody else uses the device."""
        return median(steps_s)


class NoClock(HostClock):
    """Where computing cannot be told from waiting: on GPUs under ZeRO-3, whose forward pass gathers weights."""

    def read_s(self) -> float:
        """Not known."""
        return math.nan


def open_clock(device: torch.device, stage: int) -> ComputeClock:
    """Chooses how a rank's computation is timed.

    Args:
        device: What it computes on.
        stage: Of ZeRO.

    Returns:
        The clock.
    """
    if device.type != "cuda":
        return HostClock()
    return NoClock() if stage == 3 else DeviceClock()


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch does not annotate it
