"""Going back to an older checkpoint within a run, and leaving out the sequences that led away from it."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from scaletrain.checkpoint.commit import discard
from scaletrain.checkpoint.layout import list_checkpoints, step_of
from scaletrain.data.dataset import SequenceDataset
from scaletrain.errors import DataError, StorageError
from scaletrain.protocols import Run, SequenceRange, TrainingState
from scaletrain.training.skipped import ROLLBACK_EVENT, recorded_ranges, recorded_skips
from scaletrain.training.tiers import Tier

logger = logging.getLogger(__name__)

_MOST_DOCUMENTS = 8


class RollBack(Exception):  # no error: the run goes on, from an older checkpoint
    """Raised on all ranks by a callback, at the end of a step, to have the run go back and on.

    Attributes:
        left_out: The sequences that the run then leaves out.
        reason: Why, for people.
        newest_step: The newest checkpoint that the run may go on from.
    """

    def __init__(self, left_out: SequenceRange, reason: str, newest_step: int) -> None:
        super().__init__(f"goes back to step {newest_step} or before: {reason}")
        self.left_out = left_out
        self.reason = reason
        self.newest_step = newest_step


def settle_rollback(
    run: Run, tiers: Sequence[Tier], back: RollBack, state: TrainingState, documents: Sequence[str]
) -> None:
    """Makes a rollback part of the run once the older checkpoint is loaded; every rank calls it.

    Args:
        run: The run as it was, with the folder and the diary.
        tiers: The places for checkpoints.
        back: What was asked for.
        state: Where the run goes on; gets all that is left out.
        documents: Some of what the sequences were made of.
    """
    # First, and then the event: cut between the two, the next start comes to the same rollback once more. The other way
    # round it would go on from a checkpoint that lies behind the rollback.
    problems: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(problems, discard_later(tiers, state.step))
    if any(problems):
        told = "; ".join(dict.fromkeys(filter(None, problems)))
        raise StorageError(f"checkpoints behind step {state.step} cannot be deleted: {told}. Mend the storage.")
    if run.is_main:
        logger.warning("goes back from step %d to step %d: %s", run.state.step, state.step, back.reason)
    left_out = back.left_out
    run.record_event(
        ROLLBACK_EVENT,
        to_step=state.step,
        first_sequence=left_out.first,
        stop_sequence=left_out.stop,
        reason=back.reason,
        documents=list(documents),
    )
    restore_skipped(run.folder, state)
    state.skipped_sequences = tuple(dict.fromkeys([*state.skipped_sequences, left_out]))


def discard_later(tiers: Sequence[Tier], step: int) -> str | None:
    """Deletes the checkpoints behind a step: they hold what the run went back from, and would be the newest.

    Args:
        tiers: The places for checkpoints.
        step: The step that the run went back to.

    Returns:
        Why this rank could not, or None.
    """
    try:
        for tier in tiers:
            for folder in list_checkpoints(tier.checkpoints) if tier.is_committer else ():
                if (step_of(folder) or 0) > step:
                    discard(folder)
    except OSError as error:
        return f"{error.strerror} ({error.filename})"
    return None


def documents_of(dataset: SequenceDataset, sequences: SequenceRange) -> list[str]:
    """Some documents of a range, those of its last sequences first.

    Args:
        dataset: The run's sequences.
        sequences: The range.

    Returns:
        A handful of ``source/key``; the reason, where a document cannot be told.
    """
    found: dict[str, None] = {}
    for sequence in reversed(range(sequences.first, sequences.stop)):
        try:
            for piece in dataset.order.pieces(sequence):
                reader = dataset.readers[piece.source]
                found[f"{reader.name}/{reader.keys(piece.shard)[piece.document]}"] = None
        except DataError as error:
            found[f"(sequence {sequence}: {error})"] = None
        if len(found) >= _MOST_DOCUMENTS:
            break
    return list(found)[:_MOST_DOCUMENTS]


def restore_skipped(run_dir: Path, state: TrainingState) -> None:
    """Adds what an earlier start left out, also after the checkpoint that this one goes on from.

    Every rank calls it. So a step that is done again is done with the same data.

    Args:
        run_dir: The run directory.
        state: Where the run goes on; gets the shards and the ranges of sequences.
    """
    told: list[Any] = [(), ()]
    if dist.get_rank() == 0:
        told[0] = tuple(dict.fromkeys([*state.skipped, *recorded_skips(run_dir)]))
        told[1] = tuple(dict.fromkeys([*state.skipped_sequences, *recorded_ranges(run_dir)]))
    dist.broadcast_object_list(told, src=0)
    state.skipped, state.skipped_sequences = told
