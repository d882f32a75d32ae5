"""From the order of the data to the micro batches of a step, through worker processes."""

import atexit
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from scaletrain.config.batch_plan import FILLING, BatchPlan, BatchSchedule
from scaletrain.data.dataset import SequenceDataset
from scaletrain.data.mixture import BLOCK
from scaletrain.data.rows import MicroBatch
from scaletrain.errors import DataError
from scaletrain.lifetime import end_with


@dataclass(frozen=True)
class StepBatch:
    """All micro batches of one rank in one step.

    Attributes:
        step: Number of the global batch, from 0.
        first_sequence: Index of its first sequence in the run.
        global_batch_size: Sequences in it, over all ranks.
        micro_batches: This rank's part.
    """

    step: int
    first_sequence: int
    global_batch_size: int
    micro_batches: list[MicroBatch]


@dataclass(frozen=True)
class Share:
    """Which part of each step a rank fetches.

    Attributes:
        schedule: Sizes of the steps.
        micro_batch_size: Sequences in one forward pass.
        rank: Which rank, from 0.
        world_size: Number of ranks.
    """

    schedule: BatchSchedule
    micro_batch_size: int
    rank: int = 0
    world_size: int = 1

    def plan(self, first_sequence: int) -> BatchPlan:
        """How the step that begins with a sequence is cut."""
        return self.schedule.plan_at(first_sequence, self.micro_batch_size, self.world_size)


class _MicroBatches(Dataset["MicroBatch | DataError"]):
    """Micro batches by the list of their sequences, as a worker makes them.

    A damaged shard is handed over as a value: raised in a worker, it would reach the user wrapped in a traceback.
    """

    def __init__(self, dataset: SequenceDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, indices: list[int]) -> "MicroBatch | DataError":
        try:
            return self.dataset.micro_batch(indices)
        except DataError as error:
            return error


class _PlannedSampler(Sampler[list[int]]):
    """The micro batches of one rank from a sequence on, without end; beginning late costs nothing."""

    def __init__(self, share: Share, first_sequence: int) -> None:
        self.share = share
        self.first_sequence = first_sequence

    def __iter__(self) -> Iterator[list[int]]:
        sequence = self.first_sequence
        while True:
            sequence = self.share.schedule.first_of(sequence)
            plan = self.share.plan(sequence)
            yield from plan.micro_batches(self.share.rank, sequence)
            sequence += plan.global_batch_size


class StepStream(Iterator[StepBatch]):
    """The steps of one rank, fetched ahead by workers; ``close`` ends the workers."""

    def __init__(
        self, loader: "DataLoader[MicroBatch | DataError]", share: Share, first_step: int, first_sequence: int
    ) -> None:
        """Starts the workers.

        Args:
            loader: Gives the micro batches of all steps in a row.
            share: Which part of each step they are.
            first_step: Number of the first step.
            first_sequence: Sequences consumed or left out before it.
        """
        self._micro_batches: Iterator[MicroBatch | DataError] | None = iter(loader)
        self._share = share
        self._step = first_step
        self._sequence = first_sequence
        # The workers ignore SIGTERM, with which multiprocessing ends those that are left at exit, and it would
        # wait for them: they must be told before.
        atexit.register(self.close)

    def __next__(self) -> StepBatch:
        """The next step.

        Raises:
            DataError: What a worker met; the step cannot be fetched again from this stream.
        """
        self._sequence = self._share.schedule.first_of(self._sequence)
        plan = self._share.plan(self._sequence)
        micro_batches: list[MicroBatch] = []
        for _ in range(plan.micro_steps):
            if self._micro_batches is None:
                raise StopIteration
            micro_batch = next(self._micro_batches)
            if isinstance(micro_batch, DataError):
                raise micro_batch
            micro_batches.append(micro_batch)
        batch = StepBatch(self._step, self._sequence, plan.global_batch_size, micro_batches)
        self._step += 1
        self._sequence += plan.global_batch_size
        return batch

    def close(self) -> None:
        """Ends the workers; nothing can be fetched afterwards."""
        self._micro_batches = None
        atexit.unregister(self.close)


def iterate_steps(
    dataset: SequenceDataset,
    share: Share,
    first_step: int = 0,
    first_sequence: int = 0,
    num_workers: int = 1,
    prefetch: int = 4,
) -> StepStream:
    """The steps of one rank, from any step on, without end.

    What a step holds depends on the dataset, the schedule and the step's first sequence alone. The global random
    generator of torch is neither used nor moved.

    Args:
        dataset: The sequences.
        share: Which part of each step is fetched.
        first_step: The step to begin with.
        first_sequence: Its first sequence, if the schedule does not leave it out: as many as were consumed or left
            out before.
        num_workers: Processes that fetch; 0 fetches in this one.
        prefetch: Micro batches that each worker holds ready.

    Returns:
        An endless iterator. Its tensors are in pinned memory where there is a CUDA device. It raises DataError
        when a shard or its index is missing or damaged. ``close`` it to end the workers early. They also end with
        the thread that calls this function.
    """
    loader = DataLoader(
        _MicroBatches(dataset),
        batch_size=None,
        sampler=_PlannedSampler(share, first_sequence),
        collate_fn=_unchanged,
        num_workers=num_workers,
        prefetch_factor=prefetch if num_workers else None,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_live_and_die_with_the_rank if num_workers else None,
        # Only a fork makes the rank the workers' parent, whose death the kernel reports to them.
        multiprocessing_context="fork" if num_workers else None,
        generator=torch.Generator(),
    )
    return StepStream(loader, share, first_step, first_sequence)


def evaluation_sequences(dataset: SequenceDataset, most: int | None = None) -> list[int]:
    """A fixed set: the first sequences of the first epoch of each source, equally many of each.

    Args:
        dataset: The sequences; opened with one lane and a seed of its own, it is the same set for every run.
        most: Sequences of the set, rounded up to equally many of each source; fewer where one holds fewer. All of
            each by default.

    Returns:
        Their indices.
    """
    order = dataset.order
    longest = max(own.sequences_per_epoch for own in order.sources)
    share = longest if most is None else min(longest, -(-most // len(order.sources)))
    before = (share + 2 * BLOCK) * len(order.sources)  # with equal weights no source lags behind by more than a block
    found = [
        order.mixture.place_of(0, source, number, before)
        for source, own in enumerate(order.sources)
        for number in range(min(share, own.sequences_per_epoch))
    ]
    return [place for place in found if place is not None]


def evaluation_batches(
    dataset: SequenceDataset, sequences: Sequence[int], micro_batch_size: int, rank: int, world_size: int
) -> Iterator[MicroBatch]:
    """One rank's share of a fixed set.

    Args:
        dataset: The sequences.
        sequences: Indices of those of the set.
        micro_batch_size: Sequences in one forward pass.
        rank: Which rank's share, from 0.
        world_size: Number of ranks.

    Yields:
        Equally many micro batches on every rank, each of equally many rows, the last ones filled with rows without
        targets.

    Raises:
        DataError: A shard or its index is missing or damaged.
    """
    share = -(-len(sequences) // world_size)
    plan = BatchPlan(len(sequences), min(micro_batch_size, share), world_size)
    for places in plan.micro_batches(rank, first_sequence=0):
        yield dataset.micro_batch([FILLING if place == FILLING else sequences[place] for place in places])
    # They are read once, and what a cache deletes keeps its place on the disk for as long as it is open here.
    for reader in dataset.readers:
        reader.release()


def _unchanged(made: Any) -> Any:
    return made


def _live_and_die_with_the_rank(worker: int) -> None:
    """Set up in each worker: signals to a whole process group are for the rank to act on, while it still trains."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    # Each worker encodes for itself; the library would warn, as it was used before the fork.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if sys.platform == "linux":
        end_with(os.getppid())
