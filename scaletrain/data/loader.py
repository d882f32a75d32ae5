"""From the order of the data to the micro batches of a step, through worker processes."""

import atexit
import ctypes
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from scaletrain.config.batch_plan import FILLING, BatchPlan
from scaletrain.data.manifest import Manifest
from scaletrain.data.order import Order, Piece, ShardDocuments
from scaletrain.data.packing import PackedSequence, filling, pack
from scaletrain.data.shards import ShardReader
from scaletrain.errors import DataError

_PR_SET_PDEATHSIG = 1  # from <sys/prctl.h>


class MicroBatch(TypedDict):
    """What one forward pass takes; legend: B sequences, T places.

    ``tokens`` and ``targets`` (B, T) int64; ``documents`` (B, T) int32 and ``positions`` (B, T) int64, both None
    where every row is one document from its first place on, or borders are not respected: plain causal attention.
    """

    tokens: Tensor
    targets: Tensor
    documents: Tensor | None
    positions: Tensor | None


@dataclass(frozen=True)
class StepBatch:
    """All micro batches of one rank in one step."""

    step: int
    micro_batches: list[MicroBatch]


class SequenceDataset(Dataset[PackedSequence]):
    """The sequences of a split, by their index: item i is the same on every rank and in every worker.

    The length is that of one epoch; later indices lead into the following epochs, without end.
    """

    def __init__(
        self, reader: ShardReader, order: Order, eos_id: int, vocab_size: int, document_borders: bool = True
    ) -> None:
        """Puts the parts together.

        Args:
            reader: Of the shards that the order was made of.
            order: Which pieces make up a sequence.
            eos_id: Fills the end of a window, and the rows of filling.
            vocab_size: Tokens must be below it.
            document_borders: Whether micro batches say where a document ends.
        """
        self.reader = reader
        self.order = order
        self.eos_id = eos_id
        self.vocab_size = vocab_size
        self.document_borders = document_borders

    @classmethod
    def open(
        cls,
        manifest: Manifest,
        split: str,
        max_seq_len: int,
        num_lanes: int = 1,
        window_shards: int = 8,
        seed: int = 0,
        document_borders: bool = True,
    ) -> "SequenceDataset":
        """The sequences of a split of a corpus.

        Args:
            manifest: The corpus.
            split: ``train`` or ``validation``.
            max_seq_len: Inputs of a sequence, in tokens.
            num_lanes: Streams that the shards are dealt to.
            window_shards: Shards whose documents are shuffled together.
            seed: Of the shuffles.
            document_borders: Whether micro batches say where a document ends.

        Returns:
            The dataset; no shard is opened yet.

        Raises:
            DataError: The split is empty, or has fewer shards than lanes.
        """
        reader = ShardReader.of_split(manifest, split)
        shards = [
            ShardDocuments(entry.tokens, partial(reader.token_counts, shard))
            for shard, entry in enumerate(reader.shards)
        ]
        order = Order(shards, max_seq_len, num_lanes, window_shards, seed)
        return cls(reader, order, manifest.tokenizer.eos_id, manifest.tokenizer.vocab_size, document_borders)

    def __len__(self) -> int:
        return self.order.sequences_per_epoch

    def __getitem__(self, index: int) -> PackedSequence:
        """One packed sequence.

        Args:
            index: Of the sequence in the run, from 0; ``FILLING`` for a row without targets.

        Returns:
            Its arrays of ``max_seq_len`` places.

        Raises:
            DataError: A shard or its index is missing or damaged.
        """
        if index == FILLING:
            return filling(self.order.max_seq_len, self.eos_id)
        pieces = self.order.pieces(index)
        packed = pack([self.reader.tokens(*piece) for piece in pieces], self.order.max_seq_len, self.eos_id)
        largest = int(max(packed.tokens.max(), packed.targets.max()))
        if largest >= self.vocab_size:
            raise DataError(
                f"Sequence {index} holds token {largest}, but the vocabulary has {self.vocab_size}: "
                f"{self._files(pieces)} is damaged. Copy it again from where it came, or build the corpus again "
                "with tools/make_shards.py."
            )
        return packed

    def micro_batch(self, indices: Sequence[int]) -> MicroBatch:
        """Collates sequences into what one forward pass takes.

        Args:
            indices: Of the sequences; ``FILLING`` for rows without targets.

        Returns:
            The micro batch, on the CPU.

        Raises:
            DataError: A shard or its index is missing or damaged.
        """
        rows = [self[index] for index in indices]
        batch = MicroBatch(
            tokens=torch.from_numpy(np.stack([row.tokens for row in rows])),
            targets=torch.from_numpy(np.stack([row.targets for row in rows])),
            documents=None,
            positions=None,
        )
        # Documents are numbered from 0 in a row: a last number of 0 is a row without a border.
        if self.document_borders and any(row.documents[-1] for row in rows):
            batch["documents"] = torch.from_numpy(np.stack([row.documents for row in rows]))
            batch["positions"] = torch.from_numpy(np.stack([row.positions for row in rows]).astype(np.int64))
        return batch

    def _files(self, pieces: Sequence[Piece]) -> str:
        names = sorted({self.reader.shards[piece.shard].path for piece in pieces})
        return " or ".join(str(self.reader.folder / name) for name in names)


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
    """The micro batches of one rank from a step on, without end; beginning late costs nothing."""

    def __init__(self, plan: BatchPlan, rank: int, first_step: int) -> None:
        self.plan = plan
        self.rank = rank
        self.first_step = first_step

    def __iter__(self) -> Iterator[list[int]]:
        step = self.first_step
        while True:
            yield from self.plan.micro_batches(self.rank, step)
            step += 1


class StepStream(Iterator[StepBatch]):
    """The steps of one rank, fetched ahead by workers; ``close`` ends the workers."""

    def __init__(self, loader: "DataLoader[MicroBatch | DataError]", plan: BatchPlan, first_step: int) -> None:
        """Starts the workers.

        Args:
            loader: Gives micro batches, ``plan.micro_steps`` for each step.
            plan: How a step is cut.
            first_step: Number of the first step.
        """
        self._micro_batches: Iterator[MicroBatch | DataError] | None = iter(loader)
        self._plan = plan
        self._step = first_step
        # The workers ignore SIGTERM, with which multiprocessing ends those that are left at exit, and it would
        # wait for them: they must be told before.
        atexit.register(self.close)

    def __next__(self) -> StepBatch:
        if self._micro_batches is None:
            raise StopIteration
        micro_batches = []
        for _ in range(self._plan.micro_steps):
            micro_batch = next(self._micro_batches)
            if isinstance(micro_batch, DataError):
                raise micro_batch
            micro_batches.append(micro_batch)
        self._step += 1
        return StepBatch(self._step - 1, micro_batches)

    def close(self) -> None:
        """Ends the workers; nothing can be fetched afterwards."""
        self._micro_batches = None
        atexit.unregister(self.close)


def iterate_steps(
    dataset: SequenceDataset,
    plan: BatchPlan,
    rank: int,
    first_step: int = 0,
    num_workers: int = 1,
    prefetch: int = 4,
) -> StepStream:
    """The steps of one rank, from any step on, without end.

    What a step holds depends on the dataset, the plan and the step's number alone. The global random generator of
    torch is neither used nor moved.

    Args:
        dataset: The sequences.
        plan: How a step is cut.
        rank: Which rank's share, from 0.
        first_step: The step to begin with.
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
        sampler=_PlannedSampler(plan, rank, first_step),
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
    return StepStream(loader, plan, first_step)


def evaluation_batches(
    dataset: SequenceDataset, n_sequences: int, micro_batch_size: int, rank: int, world_size: int
) -> Iterator[MicroBatch]:
    """One rank's share of a fixed set: the first sequences of the first epoch.

    Args:
        dataset: The sequences; opened with one lane and a seed of its own, it is the same set for every run.
        n_sequences: Sequences of the set; the whole epoch where there are fewer.
        micro_batch_size: Sequences in one forward pass.
        rank: Which rank's share, from 0.
        world_size: Number of ranks.

    Yields:
        Equally many micro batches on every rank, each of ``micro_batch_size`` rows, the last ones filled with rows
        without targets.

    Raises:
        DataError: A shard or its index is missing or damaged.
    """
    total = min(n_sequences, len(dataset))
    share = -(-total // world_size)
    plan = BatchPlan(total, min(micro_batch_size, share), world_size)
    for indices in plan.micro_batches(rank, step=0):
        yield dataset.micro_batch(indices)


def _unchanged(made: Any) -> Any:
    return made


def _live_and_die_with_the_rank(worker: int) -> None:
    """Set up in each worker: signals to a whole process group are for the rank to act on, while it still trains."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
