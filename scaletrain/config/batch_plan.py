"""Which sequences of a step belong to which rank and micro step: arithmetic on three sizes."""

from collections.abc import Iterable
from dataclasses import dataclass

from scaletrain.config.schema import TrainConfig
from scaletrain.errors import ConfigError
from scaletrain.protocols import SequenceRange

FILLING = -1
"""In place of a sequence's index: a masked row that carries no target and weighs nothing."""


@dataclass(frozen=True)
class BatchPlan:
    """How a global batch is cut into micro batches, for any number of ranks.

    A step consists of ``global_batch_size`` sequences in a row, however many ranks there are. Where the sizes do not
    divide, rows of filling make the micro batches equal.

    Attributes:
        global_batch_size: Sequences in a step, over all ranks.
        micro_batch_size: Sequences in one forward pass of a rank.
        world_size: Number of ranks.
    """

    global_batch_size: int
    micro_batch_size: int
    world_size: int

    def __post_init__(self) -> None:
        """Refuses sizes that make no plan.

        Raises:
            ConfigError: A size is below 1, or the micro batch is larger than the global batch.
        """
        for name in ("global_batch_size", "micro_batch_size", "world_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, but must be at least 1.")
        if self.micro_batch_size > self.global_batch_size:
            raise ConfigError(
                f"train.micro_batch_size is {self.micro_batch_size}, larger than train.global_batch_size, which is "
                f"{self.global_batch_size}. Lower the one or raise the other."
            )

    @property
    def micro_steps(self) -> int:
        """Forward passes of each rank in a step: the steps of gradient accumulation."""
        largest_share = -(-self.global_batch_size // self.world_size)
        return -(-largest_share // self.micro_batch_size)

    @property
    def filling_share(self) -> float:
        """Share of all rows that are filling, in [0, 1): the work that is lost to sizes that do not divide."""
        rows = self.world_size * self.micro_steps * self.micro_batch_size
        return 1.0 - self.global_batch_size / rows

    def sequences(self, rank: int, first_sequence: int) -> range:
        """Sequences of a step that a rank holds; the ranks' shares differ by at most one.

        Sequence i belongs to rank ``i % world_size``. Consecutive sequences come from all lanes in turn, so each rank
        has lanes of its own where the number of lanes is a multiple of the number of ranks, whatever the batch size.

        Args:
            rank: Which rank, from 0.
            first_sequence: The step's first sequence.
        """
        first = first_sequence + (rank - first_sequence) % self.world_size
        return range(first, first_sequence + self.global_batch_size, self.world_size)

    def micro_batches(self, rank: int, first_sequence: int) -> list[list[int]]:
        """Sequences of one rank in one step.

        Args:
            rank: Which rank, from 0.
            first_sequence: The step's first sequence.

        Returns:
            ``micro_steps`` lists of ``micro_batch_size`` indices of sequences; ``FILLING`` stands for a masked row.
        """
        size = self.micro_batch_size
        rows = list(self.sequences(rank, first_sequence))
        rows += [FILLING] * (self.micro_steps * size - len(rows))
        return [rows[start : start + size] for start in range(0, len(rows), size)]


@dataclass(frozen=True)
class BatchSchedule:
    """The batch size as a function of the sequences consumed before a step.

    Attributes:
        phases: (sequence, global batch size): the size of the steps that begin before that sequence; ascending.
        last: Global batch size behind the last phase.
        left_out: Ranges of sequences that are passed over, ascending and without overlap: a step that would begin
            inside one begins behind it.
    """

    phases: tuple[tuple[int, int], ...]
    last: int
    left_out: tuple[SequenceRange, ...] = ()

    @classmethod
    def of(cls, train: TrainConfig, left_out: Iterable[SequenceRange] = ()) -> "BatchSchedule":
        """The schedule of a configuration, whose phases end at the first sequence at or after their tokens.

        Args:
            train: Gives the sizes.
            left_out: Ranges that are passed over, in any order; they may overlap.
        """
        phases = tuple(
            (-(-phase.until_tokens // train.max_seq_len), phase.global_batch_size) for phase in train.batch_schedule
        )
        return cls(phases, train.global_batch_size, _joined(left_out))

    def first_of(self, sequence: int) -> int:
        """The first sequence of the step that follows when so many sequences are consumed or left out."""
        return next((one.stop for one in self.left_out if one.first <= sequence < one.stop), sequence)

    def size_at(self, sequence: int) -> int:
        """Sequences in the step that begins with a sequence."""
        return next((size for until, size in self.phases if sequence < until), self.last)

    def sequence_after(self, sequence: int, steps: int) -> int:
        """The sequence that follows some steps.

        Args:
            sequence: The first of the first step.
            steps: How many steps are taken.

        Returns:
            The first sequence of the step after them; the time it takes grows with the phases and the ranges, not with
            the steps.
        """
        sequence = self.first_of(sequence)
        for one in self.left_out:
            taken = min(steps, self._steps_within(sequence, one.first))
            sequence, steps = self.first_of(self._sequence_within(sequence, taken)), steps - taken
        return self.first_of(self._sequence_within(sequence, steps))

    def steps_between(self, sequence: int, other: int) -> int:
        """Steps that begin at or after a sequence, at which a step begins, and before another."""
        sequence, steps = self.first_of(sequence), 0
        for one in self.left_out:
            if one.first < other:
                taken = self._steps_within(sequence, one.first)
                sequence, steps = self.first_of(self._sequence_within(sequence, taken)), steps + taken
        return steps + self._steps_within(sequence, other)

    def _sequence_within(self, sequence: int, steps: int) -> int:
        """The sequence that follows some steps where nothing is left out."""
        for until, size in self.phases:
            if steps and sequence < until:
                taken = min(steps, -(-(until - sequence) // size))
                sequence, steps = sequence + taken * size, steps - taken
        return sequence + steps * self.last

    def _steps_within(self, sequence: int, other: int) -> int:
        """Steps that begin at or after a sequence and before another where nothing is left out between them."""
        steps = 0
        for until, size in self.phases:
            end = min(until, other)
            if sequence < end:
                taken = -(-(end - sequence) // size)
                sequence, steps = sequence + taken * size, steps + taken
        return steps + max(0, -(-(other - sequence) // self.last))

    def plan_at(self, sequence: int, micro_batch_size: int, world_size: int) -> BatchPlan:
        """How the step that begins with a sequence is cut."""
        return BatchPlan(self.size_at(sequence), micro_batch_size, world_size)


def _joined(ranges: Iterable[SequenceRange]) -> tuple[SequenceRange, ...]:
    """The same sequences in ranges that ascend and do not touch."""
    joined: list[SequenceRange] = []
    for one in sorted(ranges, key=lambda one: one.first):
        if joined and one.first <= joined[-1].stop:
            joined[-1] = SequenceRange(joined[-1].first, max(joined[-1].stop, one.stop))
        else:
            joined.append(one)
    return tuple(joined)
