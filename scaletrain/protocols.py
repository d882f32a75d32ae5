"""What the parts of a run know of each other: the state, the callbacks' hooks, and the run they are given."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

Step = int | Literal["best"]
"""A checkpoint of a run: of that step, or the one with the lowest validation loss among those that are there."""


@dataclass(frozen=True)
class SkippedShard:
    """A shard that could not be read, and whose tokens are masked from a sequence on.

    Attributes:
        source: Name of the source.
        shard: Number of the shard in the source's training split.
        path: The shard's path or URL, for people.
        from_sequence: Index of the first sequence that is masked.
        of_index: Whether its index is what cannot be read: then all sequences of its window are masked.
    """

    source: str
    shard: int
    path: str
    from_sequence: int
    of_index: bool = False


@dataclass(frozen=True)
class SequenceRange:
    """Sequences in a row that a run leaves out: a step that would begin inside begins behind them.

    Attributes:
        first: The first.
        stop: The one behind the last.
    """

    first: int
    stop: int


@dataclass
class TrainingState:
    """Where a run stands: all that must survive besides DeepSpeed's tensors.

    Attributes:
        step: Global batches consumed.
        optimizer_steps: Global batches applied; a skipped one counts in ``step`` only.
        sequences: Sequences consumed, or left out before one that was.
        target_tokens: Tokens that were predicted and learnt from.
        skipped: Shards that are masked.
        skipped_sequences: Ranges that rollbacks have left out, one for each, in the order of the rollbacks.
    """

    step: int = 0
    optimizer_steps: int = 0
    sequences: int = 0
    target_tokens: int = 0
    skipped: tuple[SkippedShard, ...] = ()
    skipped_sequences: tuple[SequenceRange, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The state as plain data."""
        return {
            **asdict(self),
            "skipped": [asdict(shard) for shard in self.skipped],
            "skipped_sequences": [asdict(left_out) for left_out in self.skipped_sequences],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "TrainingState":
        """Takes back what ``to_json`` gave."""
        skipped = tuple(SkippedShard(**shard) for shard in content.get("skipped", ()))
        ranges = tuple(SequenceRange(**left_out) for left_out in content.get("skipped_sequences", ()))
        return cls(**{**content, "skipped": skipped, "skipped_sequences": ranges})


@dataclass(frozen=True)
class Fault:
    """A rank whose own numbers were not finite, before any other rank had a part in them.

    Attributes:
        rank: Which rank.
        host: Its node.
        local_rank: Its place on the node, which is that of its device.
        reason: ``loss`` or ``gradient``.
    """

    rank: int
    host: str
    local_rank: int
    reason: str


@dataclass(frozen=True)
class StepResult:
    """What one step did; the same on all ranks.

    Attributes:
        loss: Cross-entropy per target token over the global batch, in nats.
        grad_norm: Norm of the gradient before clipping; NaN or infinite for a step that was not applied.
        applied: Whether the weights were changed.
        source_nll: Sum of the cross-entropy by source over the global batch, in nats; 0 where it has no target.
        recomputed: Whether the first computation was not finite, so that the step was computed again.
        overflow: Whether it was not applied because the loss scale of fp16 was too high.
        faults: Of a step that was recomputed, the ranks whose own numbers were not finite in the first computation;
            none where they came to be so between the ranks.
    """

    loss: float
    grad_norm: float
    applied: bool
    source_nll: tuple[float, ...]
    recomputed: bool = False
    overflow: bool = False
    faults: tuple[Fault, ...] = ()


FROZEN = -1
"""Group of the fragments that are not trained."""
EMA = "ema"
"""Name of the moving average among the optimizer's tensors: it is saved, loaded and moved as the moments are."""


@dataclass(frozen=True)
class Fragment:
    """A range of one parameter in a flat tensor of a checkpoint's file.

    Attributes:
        name: The parameter's name in the wrapped module.
        start: First element of the range in the flattened parameter.
        numel: Elements in the range.
        group: Index of the flat tensor in the file; ``FROZEN`` for a tensor that stands there by its name, because no
            optimizer has it.
        offset: Where the range begins in the flat tensor.
    """

    name: str
    start: int
    numel: int
    group: int
    offset: int


@dataclass(frozen=True)
class SavedPart:
    """One rank's share of a checkpoint.

    Attributes:
        contents: What ``torch.save`` is to write, by the names of DeepSpeed's files.
        file: Which of them holds this rank's fragments, or None where it has none of its own.
        fragments: What stands in that file.
        state: Counters and shapes as JSON; the same on all ranks.
        frozen_file: Which of them holds what is not trained, or None where this rank writes nothing of it.
        frozen: What of it stands there.
    """

    contents: Mapping[str, Any]
    file: str | None
    fragments: Sequence[Fragment]
    state: dict[str, Any]
    frozen_file: str | None = None
    frozen: Sequence[Fragment] = ()


class FragmentSource(Protocol):
    """Gives ranges of a saved model's tensors."""

    def read(self, name: str, kind: str, start: int, numel: int) -> Any:
        """Elements ``start`` to ``start + numel`` of a flattened tensor in fp32, or None where it was not saved.

        Args:
            name: The parameter's name in the wrapped module.
            kind: ``weight``, or a moment of the optimizer such as ``exp_avg``.
            start: First element.
            numel: Elements.
        """


class Run(Protocol):
    """What a callback sees of the run."""

    @property
    def state(self) -> TrainingState:
        """Where the run stands."""

    @property
    def max_steps(self) -> int:
        """Global batches of the whole run."""

    @property
    def folder(self) -> Path:
        """The run directory."""

    @property
    def attempt(self) -> int:
        """Number of this start, from 1."""

    @property
    def is_main(self) -> bool:
        """Whether this rank writes what is written once."""

    save_requested: bool
    """Whether a user has asked for a checkpoint at this step."""

    save_s: float
    """Seconds that the last save took; 0 before the first."""

    complete_because: str
    """Why the run is complete before its last step; a callback sets it, on all ranks alike. Empty otherwise."""

    @property
    def batch_hash(self) -> str:
        """Checksum of the last global batch, as hexadecimal digits; empty before the first."""

    @property
    def last_step(self) -> StepResult | None:
        """What the last step did; None before the first."""

    @property
    def callbacks(self) -> Sequence["Callback"]:
        """All callbacks of the run, in their order."""

    def notify(self, hook: str, *args: Any) -> None:
        """Calls a hook of all callbacks, in their order."""

    def record_event(self, kind: str, **fields: Any) -> None:
        """Appends to events.jsonl; only rank 0 writes. Any thread may call it."""


class Callback:
    """A part of a run that the loop knows only by these hooks; each is called on every rank."""

    def on_start(self, run: Run) -> None:
        """Before the first step."""

    def on_step_end(self, run: Run, metrics: dict[str, float]) -> None:
        """After a step; ``metrics`` may be added to, and later callbacks see what earlier ones added."""

    def on_eval(self, run: Run, metrics: dict[str, float]) -> None:
        """After an evaluation."""

    def on_save(self, run: Run, folder: Path) -> None:
        """After a checkpoint is complete."""

    def on_exception(self, run: Run, error: BaseException) -> None:
        """When a step or a callback raised, before the error goes on; no collective may be used."""

    def on_end(self, run: Run) -> None:
        """After the last step, also of a run that was asked to stop."""

    def state_dict(self) -> dict[str, Any]:
        """What must survive a restart, as JSON; the same on all ranks."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what ``state_dict`` gave."""
