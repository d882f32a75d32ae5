"""Which sequences of a step belong to which rank and micro step: arithmetic on three sizes."""

from dataclasses import dataclass

from scaletrain.errors import ConfigError

FILLING = -1
"""In place of a sequence's index: a masked row that carries no target and weighs nothing."""


@dataclass(frozen=True)
class BatchPlan:
    """How a global batch is cut into micro batches, for any number of ranks.

    Step k consists of the sequences ``k * global_batch_size`` to ``(k + 1) * global_batch_size - 1``, however
    many ranks there are. Where the sizes do not divide, rows of filling make the micro batches equal.

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

    def first_sequence(self, step: int) -> int:
        """Index of the first sequence of a step."""
        return step * self.global_batch_size

    def slots(self, rank: int) -> range:
        """Places in the global batch that a rank holds; the ranks' shares differ by at most one.

        Consecutive sequences come from all lanes in turn, so a stride of the number of ranks gives each rank lanes of
        its own, where the number of lanes is a multiple of it.
        """
        return range(rank, self.global_batch_size, self.world_size)

    def micro_batches(self, rank: int, step: int) -> list[list[int]]:
        """Sequences of one rank in one step.

        Args:
            rank: Which rank, from 0.
            step: Which global batch, from 0.

        Returns:
            ``micro_steps`` lists of ``micro_batch_size`` indices of sequences; ``FILLING`` stands for a masked row.
        """
        first, size = self.first_sequence(step), self.micro_batch_size
        rows = [first + slot for slot in self.slots(rank)]
        rows += [FILLING] * (self.micro_steps * size - len(rows))
        return [rows[start : start + size] for start in range(0, len(rows), size)]
