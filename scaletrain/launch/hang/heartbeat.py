"""The heartbeat of a rank: what it does now and since when, in memory that its keeper reads from outside.

A rank writes a few numbers into a mapped page, without a system call or a lock, and so cannot be kept waiting by it.
"""

import mmap
import os
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum


class Phase(IntEnum):
    """What a rank does, in the order of a step; ``ERROR`` is what follows an exception."""

    START = 0
    DATA = 1
    AGREE = 2
    FORWARD = 3
    BACKWARD = 4
    UPDATE = 5
    CALLBACKS = 6
    EVAL = 7
    SAVE = 8
    END = 9
    ERROR = 10

    @property
    def label(self) -> str:
        """Its name in reports."""
        return self.name.lower()


@dataclass(frozen=True)
class Beat:
    """A place in a run.

    Attributes:
        marks: Phases entered so far, this one among them; another number means that the rank has moved on.
        step: Number of the step that is being made, as in metrics.jsonl; 0 before the loop.
        phase: What the rank does.
        ordinal: Phases entered since the step began; all ranks enter the same ones, so that it tells who is behind.
        micro_step: Which micro step of the step, from 0; 0 outside of forward and backward passes.
        since_s: When it was entered, on the machine's monotonic clock.
    """

    marks: int
    step: int
    phase: Phase
    ordinal: int
    micro_step: int
    since_s: float


SIZE_BYTES = 4096
_BEAT = struct.Struct("<QQIIId")
_LONGEST = struct.Struct("<d")
_TABLE = struct.Struct(f"<{len(Phase)}d")
_CURRENT = 0  # which of the two slots holds the beat: a writer that is stopped while it writes leaves the other whole
_SLOTS = (64, 128)
_OWN = 256
_AGREED = 512


class Heartbeat:
    """The rank's side of it."""

    def __init__(self, descriptor: int | None = None) -> None:
        """Begins with the phase ``start``.

        Args:
            descriptor: Memory as from ``shared_memory``; None for memory that nobody else sees.
        """
        self._memory = mmap.mmap(-1 if descriptor is None else descriptor, SIZE_BYTES)
        self._marks = 0
        self._step = 0
        self._ordinal = 0
        self._phase = Phase.START
        self._since_s = time.monotonic()
        self._longest_s = [0.0] * len(Phase)
        self._write(Phase.START)

    def enter(self, phase: Phase, step: int | None = None, micro_step: int = 0) -> None:
        """Says what this rank does from now on; about a microsecond.

        Args:
            phase: What.
            step: Number of the step that is being made; None where that has not changed.
            micro_step: Which micro step of the step, from 0.
        """
        self.observe(self._phase, time.monotonic() - self._since_s)
        self._write(phase, step, micro_step)

    def _write(self, phase: Phase, step: int | None = None, micro_step: int = 0) -> None:
        now_s = time.monotonic()
        self._phase, self._since_s = phase, now_s
        self._marks += 1
        self._ordinal += 1
        if step is not None:
            self._step, self._ordinal = step, 0
        slot = self._marks & 1
        beat = (self._marks, self._step, phase, self._ordinal, micro_step, now_s)
        _BEAT.pack_into(self._memory, _SLOTS[slot], *beat)
        self._memory[_CURRENT] = slot

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """Says that this rank does something for as long as the context lasts, and then what it did before.

        How long it takes is to be told with ``observe``, since part of it may be done beside the training.

        Args:
            phase: What.
        """
        before = self._phase
        self.enter(phase)
        yield
        self._write(before)  # not behind an error, which is a phase of its own

    def observe(self, phase: Phase, seconds: float) -> None:
        """Takes note of how long a phase has lasted.

        Args:
            phase: Which.
            seconds: For how long.
        """
        if seconds > self._longest_s[phase]:
            self._longest_s[phase] = seconds
            _LONGEST.pack_into(self._memory, _OWN + _LONGEST.size * phase, seconds)

    @property
    def longest_s(self) -> list[float]:
        """The longest that this rank has seen each phase last, in seconds; 0 for one that has not ended yet."""
        return list(self._longest_s)

    def agree(self, longest_s: Sequence[float]) -> None:
        """Takes note of the longest that any rank has seen.

        Args:
            longest_s: For each phase, in seconds; 0 for one that has not ended anywhere.
        """
        _TABLE.pack_into(self._memory, _AGREED, *longest_s)


class HeartbeatReader:
    """What another process sees of it."""

    def __init__(self, descriptor: int) -> None:
        """Maps the memory.

        Args:
            descriptor: As from ``shared_memory``.
        """
        self._memory = mmap.mmap(descriptor, SIZE_BYTES, prot=mmap.PROT_READ)

    def read(self) -> Beat:
        """What the rank does now."""
        while True:
            slot = self._memory[_CURRENT]
            marks, step, phase, ordinal, micro_step, since_s = _BEAT.unpack_from(self._memory, _SLOTS[slot])
            if self._memory[_CURRENT] == slot:
                return Beat(marks, step, Phase(phase), ordinal, micro_step, since_s)

    def longest_s(self, phase: Phase) -> float:
        """The longest that a phase is known to last, in seconds; 0 until all ranks have spoken of it."""
        agreed = _TABLE.unpack_from(self._memory, _AGREED)[phase]
        own = _TABLE.unpack_from(self._memory, _OWN)[phase]
        return float(max(agreed, own)) if agreed > 0 else 0.0


def shared_memory() -> int:
    """Makes memory for a heartbeat: a file without a name, which is gone with the last process that has it open.

    Returns:
        Its descriptor.
    """
    descriptor = os.memfd_create("scaletrain-heartbeat")
    os.ftruncate(descriptor, SIZE_BYTES)
    return descriptor
