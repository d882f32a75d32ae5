"""One save on its way: what is to be saved is taken, written beside the training, and committed when all ranks have.

Ranks never wait for each other inside of it but for agreements that all of them reach. What goes wrong on one of them
is told to all, and ends the save, not the run.
"""

import contextlib
import logging
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist

from scaletrain.checkpoint.commit import commit, discard, prepare
from scaletrain.checkpoint.layout import folder_name, partial_name
from scaletrain.checkpoint.records import FileRecord
from scaletrain.checkpoint.retention import prune
from scaletrain.checkpoint.writing import write_part
from scaletrain.engine.engine import Engine
from scaletrain.engine.snapshot import HostCopies, storages
from scaletrain.hardware.host import free_memory
from scaletrain.launch.hang.heartbeat import Phase
from scaletrain.monitors.jsonl_writer import JsonlWriter
from scaletrain.protocols import SavedPart
from scaletrain.training.tiers import Tier

logger = logging.getLogger(__name__)

_SMALL_FILES_BYTES = 16 << 20  # descriptions and states beside the tensors, which are counted exactly
_MEMORY_LEFT_BYTES = 1 << 30  # of the host, behind the copies


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


@dataclass
class _Save:
    """A save that is on its way."""

    tier: Tier
    step: int
    prunes: bool
    begun_s: float
    stall_s: float = 0.0
    size_bytes: int = 0
    phase: Literal["write", "commit", "clean"] = "write"
    problem: str | None = None
    job: _Job | None = None
    is_committed: bool = False

    @property
    def partial(self) -> Path:
        return self.tier.checkpoints / partial_name(self.step)

    @property
    def final(self) -> Path:
        return self.tier.checkpoints / folder_name(self.step)

    def end(self) -> Outcome:
        """The outcome; nobody writes any more. What is on one node only must not be taken for a checkpoint."""
        if self.problem is not None and self.tier.is_committer:
            shutil.rmtree(self.partial, ignore_errors=True)
            if self.is_committed:
                with contextlib.suppress(OSError):
                    discard(self.final)
        seconds = time.perf_counter() - self.begun_s
        return Outcome(self.tier, self.step, self.problem, self.size_bytes, self.stall_s, seconds)


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
        self._save: _Save | None = None
        self.superseded: list[Path] = []
        """Checkpoints that were refused at the start; they go once a new one is complete in their place."""

    @property
    def is_busy(self) -> bool:
        """Whether a save is on its way."""
        return self._save is not None

    def begin(
        self, tier: Tier, step: int, texts: Callable[[dict[str, Any], str], Mapping[str, str]], prunes: bool
    ) -> Outcome | None:
        """Begins to save; none may be on its way.

        Args:
            tier: Where to.
            step: The step that the run stands at.
            texts: Makes the files beside the tensors from the engine's state and the name of this save, the same in all
                folders that it is written to.
            prunes: Whether older checkpoints may make room once this one is complete.

        Returns:
            The outcome where the save could not begin.
        """
        with self._engine.heartbeat.during(Phase.SAVE):
            return self._begin(_Save(tier, step, prunes, time.perf_counter()), texts)

    def _begin(self, save: _Save, texts: Callable[[dict[str, Any], str], Mapping[str, str]]) -> Outcome | None:
        tier = save.tier
        part = self._engine.collect(tier.is_committer)
        size = sum(storage.nbytes() for storage in storages(part.contents))
        more = size - self._copies.allocated_bytes if self.in_background else 0
        save.problem, save_id, fits = _find_room(save, size, more)
        if save.problem is not None:
            save.stall_s = time.perf_counter() - save.begun_s
            return save.end()
        own_texts = texts(part.state, save_id) if tier.is_committer else {}
        copied = self._copied(part) if self.in_background and fits else None
        written = copied or part
        save.job = _Job(lambda: write_part(save.partial, dist.get_rank(), written, own_texts), copied is not None)
        save.stall_s = time.perf_counter() - save.begun_s
        self._save = save
        return None

    def advance(self, waits: bool = False) -> Outcome | None:
        """Looks after the save that is on its way.

        Args:
            waits: Whether to wait until it has ended.

        Returns:
            The outcome, once all ranks have done their part.
        """
        save = self._save
        if save is None:
            return None
        start_s = time.perf_counter()
        is_over = False
        # A look at one that is written beside the training takes no time, and is none of its phases.
        with self._engine.heartbeat.during(Phase.SAVE) if waits else contextlib.nullcontext():
            while not is_over and self._all_are_done(save, waits):
                is_over = self._next_phase(save)
        save.stall_s += time.perf_counter() - start_s
        if not is_over:
            return None
        self._save = None
        outcome = save.end()
        self._engine.heartbeat.observe(Phase.SAVE, outcome.seconds)
        return outcome

    def _all_are_done(self, save: _Save, waits: bool) -> bool:
        assert save.job is not None  # it has begun
        if waits:
            save.job.wait()
        return self._engine.agree((), (save.job.is_done,)).requests[0] == dist.get_world_size()

    def _next_phase(self, save: _Save) -> bool:
        """Whether the save is over, once all ranks have done their part of a phase."""
        assert save.job is not None  # it is done
        committer = save.tier.committer
        shares = _gather((committer, save.job.records, save.job.problem))
        save.problem = "; ".join(dict.fromkeys(problem for _, _, problem in shares if problem)) or None
        if save.problem is not None or save.phase == "clean":
            return True
        if save.phase == "commit":
            save.phase, save.job = "clean", _Job(lambda: self._clean(save), self.in_background)
            return False
        records = {name: record for other, own, _ in shares if other == committer for name, record in own.items()}
        save.size_bytes = sum(record.size for _, own, _ in shares for record in own.values())
        save.phase, save.job = "commit", _Job(lambda: self._commit(save, records), self.in_background)
        return False

    def _commit(self, save: _Save, records: Mapping[str, FileRecord]) -> dict[str, FileRecord]:
        if save.tier.is_committer:
            for record in self._records:
                record.flush()
            commit(save.partial, save.final, records)
            save.is_committed = True
        return {}

    def _clean(self, save: _Save) -> dict[str, FileRecord]:
        """Makes room, now that the checkpoint is complete everywhere."""
        tier = save.tier
        if tier.is_committer and save.prunes:
            try:
                for folder in [folder for folder in self.superseded if folder.parent == tier.checkpoints]:
                    self.superseded.remove(folder)
                    if folder != save.final and folder.exists():
                        discard(folder)
                prune(tier.checkpoints, tier.retention, save.step)
            except OSError as error:  # the checkpoint is complete all the same
                logger.warning("old checkpoints in %s cannot be deleted: %s", tier.checkpoints, error)
        return {}

    def _copied(self, part: SavedPart) -> SavedPart | None:
        """The part in host memory; None where it cannot be had there, so that the training has to wait."""
        try:
            return replace(part, contents=self._copies.take(part.contents))
        except (MemoryError, RuntimeError) as error:  # raised by this rank alone, it would leave the others waiting
            logger.warning("the training waits for this save: its state cannot be copied: %s", error)
            return None


@dataclass(frozen=True)
class _Need:
    """What a rank says before a save begins: what it will write and copy, and what there is room for."""

    committer: int
    host: str
    size_bytes: int
    copy_bytes: int
    free_bytes: int
    memory_bytes: int
    problem: str | None
    save_id: str


def _find_room(save: _Save, size: int, more: int) -> tuple[str | None, str, bool]:
    """Makes the folder, and compares what all ranks need with what there is.

    Args:
        save: The save that begins.
        size: Bytes that this rank will write.
        more: Bytes of host memory that this rank lacks for a copy.

    Returns:
        Why the save cannot begin, or None; its name; and whether the copies of this node fit into its memory.
    """
    tier = save.tier
    free, problem = 0, None
    if tier.is_committer:
        try:
            free = prepare(save.partial)
        except OSError as error:
            problem = f"{error.strerror} ({error.filename})"
    place = (tier.committer, socket.gethostname())
    needs: list[_Need] = _gather(_Need(*place, size, max(0, more), free, free_memory(), problem, secrets.token_hex(8)))
    for rank, need in enumerate(needs):
        needed = sum(other.size_bytes for other in needs if other.committer == rank) + _SMALL_FILES_BYTES
        if need.committer == rank and need.problem is None and needed > need.free_bytes:
            problem = f"{needed / 1e9:.3g} GB are needed and {need.free_bytes / 1e9:.3g} GB free in {tier.checkpoints}"
            return problem, "", False
        if need.problem is not None:
            return need.problem, "", False
    own = [need for need in needs if need.host == place[1]]
    copies = sum(need.copy_bytes for need in own)
    fits = copies == 0 or min(need.memory_bytes for need in own) - copies > _MEMORY_LEFT_BYTES
    if not fits and tier.is_committer:
        logger.warning("the training waits for this save: %.3g GB of memory for copies are not free", copies / 1e9)
    return None, needs[0].save_id, fits


def _gather(own: Any) -> list[Any]:
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, own)
    return gathered
