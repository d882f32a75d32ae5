"""One save on its way: what is to be saved is taken, written beside the training, and committed when all ranks have.

Ranks never wait for each other inside of it but for agreements that all of them reach. What goes wrong on one of them
is told to all, and ends the save, not the run.
"""

import logging
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import psutil
import torch.distributed as dist

from scaletrain.checkpoint.commit import commit, prepare
from scaletrain.checkpoint.layout import folder_name, partial_name
from scaletrain.checkpoint.records import FileRecord
from scaletrain.checkpoint.retention import Retention, prune
from scaletrain.checkpoint.writing import write_part
from scaletrain.engine.engine import Engine
from scaletrain.engine.snapshot import HostCopies, storages
from scaletrain.monitors.jsonl_writer import JsonlWriter

logger = logging.getLogger(__name__)

_SMALL_FILES_BYTES = 16 << 20  # descriptions and states beside the tensors, which are counted exactly
_MEMORY_LEFT_BYTES = 1 << 30  # of the host, behind the copies


@dataclass(frozen=True)
class Tier:
    """A place for checkpoints.

    Attributes:
        name: ``shared``: all ranks see one folder; ``local``: each node has its own.
        checkpoints: The folder.
        every_steps: Interval of saves; 0 for none.
        retention: What stays.
        committer: The rank that makes and commits the folder that this rank writes to.
    """

    name: Literal["shared", "local"]
    checkpoints: Path
    every_steps: int
    retention: Retention
    committer: int = 0

    @property
    def is_committer(self) -> bool:
        """Whether this rank makes and commits the folder."""
        return self.committer == dist.get_rank()


@dataclass(frozen=True)
class Outcome:
    """How a save ended; the same on all ranks but for the seconds.

    Attributes:
        tier: Where it went.
        step: Which step's state it holds.
        problem: Why there is no checkpoint; None where there is one.
        size_bytes: What all ranks have written.
        stall_s: Time for which the training stood still on this rank.
        seconds: Time from its begin until it was complete.
    """

    tier: Tier
    step: int
    problem: str | None
    size_bytes: int = 0
    stall_s: float = 0.0
    seconds: float = 0.0

    @property
    def folder(self) -> Path:
        """The checkpoint."""
        return self.tier.checkpoints / folder_name(self.step)


class _Job:
    """Work of this rank, in a thread or at once; what it returns or why it failed."""

    def __init__(self, work: Callable[[], dict[str, FileRecord]], in_background: bool) -> None:
        self._work = work
        self.records: dict[str, FileRecord] = {}
        self.problem: str | None = None
        self._thread = threading.Thread(target=self._run, name="save", daemon=True) if in_background else None
        if self._thread is None:
            self._run()
        else:
            self._thread.start()

    def _run(self) -> None:
        try:
            self.records = self._work()
        except OSError as error:
            self.problem = f"{error.strerror or error} ({error.filename or 'while writing'})"
        except Exception as error:  # a save that fails must not end the run, whatever is wrong with it
            logger.exception("the save failed")
            self.problem = f"{type(error).__name__}: {error}"

    @property
    def is_done(self) -> bool:
        return self._thread is None or not self._thread.is_alive()

    def wait(self) -> None:
        if self._thread is not None:
            self._thread.join()


class Saver:
    """Saves, one checkpoint at a time; every rank calls its methods."""

    def __init__(self, engine: Engine, in_background: bool, records: Sequence[JsonlWriter]) -> None:
        """Holds what a save needs.

        Args:
            engine: The model on all ranks.
            in_background: Whether files are written beside the training, from a copy in host memory.
            records: Of the steps so far; they must be durable before a checkpoint counts, or a run that goes on from it
                would have gaps in them.
        """
        self._engine = engine
        self.in_background = in_background
        self._records = records
        self._copies = HostCopies()
        self._begun_s = 0.0
        self._stall_s = 0.0
        self._outcome: Outcome | None = None
        self._texts: Mapping[str, str] = {}
        self._job: _Job | None = None
        self._is_committing = False
        self._prunes = True

    @property
    def is_busy(self) -> bool:
        """Whether a save is on its way."""
        return self._job is not None

    def begin(
        self, tier: Tier, step: int, texts: Callable[[dict[str, Any]], Mapping[str, str]], prunes: bool
    ) -> Outcome | None:
        """Begins to save; none may be on its way.

        Args:
            tier: Where to.
            step: The step that the run stands at.
            texts: Makes the files beside the tensors from the engine's state.
            prunes: Whether older checkpoints may make room once this one is complete.

        Returns:
            The outcome where the save could not begin.
        """
        self._begun_s, self._stall_s = time.perf_counter(), 0.0
        self._outcome, self._prunes, self._is_committing = Outcome(tier, step, None), prunes, False
        part = self._engine.collect(tier.is_committer)
        size = sum(storage.nbytes() for storage in storages(part.contents))
        problem = self._find_room(size)
        if problem is not None:
            return replace(self._end(problem), stall_s=time.perf_counter() - self._begun_s)
        self._texts = texts(part.state) if tier.is_committer else {}
        in_background = self.in_background and self._fits_in_memory(size)
        if in_background:
            part = replace(part, contents=self._copies.take(part.contents))
        partial = tier.checkpoints / partial_name(step)
        self._job = _Job(lambda: write_part(partial, dist.get_rank(), part, self._texts), in_background)
        self._stall_s += time.perf_counter() - self._begun_s
        return None

    def advance(self, waits: bool = False) -> Outcome | None:
        """Looks after the save that is on its way.

        Args:
            waits: Whether to wait until it has ended.

        Returns:
            The outcome, once all ranks have done their part.
        """
        start_s = time.perf_counter()
        outcome = None
        while self._job is not None and outcome is None:
            if waits:
                self._job.wait()
            done = self._engine.agree((), (self._job.is_done,)).requests[0]
            if done < dist.get_world_size():
                break
            outcome = self._next_phase(self._job)
        if outcome is None:
            self._stall_s += time.perf_counter() - start_s
            return None
        return replace(outcome, stall_s=self._stall_s + time.perf_counter() - start_s)

    def _next_phase(self, job: _Job) -> Outcome | None:
        assert self._outcome is not None  # a save is on its way
        tier = self._outcome.tier
        shares = _gather((tier.committer, job.records, job.problem))
        problems = list(dict.fromkeys(problem for _, _, problem in shares if problem))
        if problems or self._is_committing:
            return self._end("; ".join(problems) or None)
        own = {
            name: record
            for committer, records, _ in shares
            if committer == tier.committer
            for name, record in records.items()
        }
        size = sum(record.size for _, records, _ in shares for record in records.values())
        self._outcome = replace(self._outcome, size_bytes=size)
        self._is_committing = True
        self._job = _Job(lambda: self._commit(own) if tier.is_committer else {}, self.in_background)
        return None

    def _commit(self, records: Mapping[str, FileRecord]) -> dict[str, FileRecord]:
        assert self._outcome is not None  # a save is on its way
        tier, step = self._outcome.tier, self._outcome.step
        for record in self._records:
            record.flush()
        commit(tier.checkpoints / partial_name(step), self._outcome.folder, records)
        if self._prunes:
            try:
                prune(tier.checkpoints, tier.retention, step)
            except OSError as error:  # the checkpoint is complete all the same
                logger.warning("old checkpoints in %s cannot be deleted: %s", tier.checkpoints, error)
        return {}

    def _end(self, problem: str | None) -> Outcome:
        assert self._outcome is not None  # a save is on its way
        tier = self._outcome.tier
        if problem is not None and tier.is_committer:
            shutil.rmtree(tier.checkpoints / partial_name(self._outcome.step), ignore_errors=True)
        self._job = None
        return replace(self._outcome, problem=problem, seconds=time.perf_counter() - self._begun_s)

    def _find_room(self, size: int) -> str | None:
        """Makes the folder, and compares what is free there with what all ranks will write to it."""
        assert self._outcome is not None  # a save is on its way
        tier = self._outcome.tier
        free, problem = 0, None
        if tier.is_committer:
            try:
                free = prepare(tier.checkpoints / partial_name(self._outcome.step))
            except OSError as error:
                problem = f"{error.strerror} ({error.filename})"
        answers = _gather((tier.committer, size, free, problem, dist.get_rank()))
        for committer, _, free, problem, rank in answers:
            if rank != committer:
                continue
            needed = sum(own for other, own, _, _, _ in answers if other == rank) + _SMALL_FILES_BYTES
            if problem is None and needed > free:
                problem = f"{needed / 1e9:.3g} GB are needed and {free / 1e9:.3g} GB free in {tier.checkpoints}"
            if problem is not None:
                return problem
        return None

    def _fits_in_memory(self, size: int) -> bool:
        more = size - self._copies.allocated_bytes
        fits = more <= 0 or psutil.virtual_memory().available - more > _MEMORY_LEFT_BYTES
        if not fits:
            logger.warning("the training waits for this save: %.3g GB of memory for a copy are not free", more / 1e9)
        return fits


def _gather(own: Any) -> list[Any]:
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, own)
    return gathered
