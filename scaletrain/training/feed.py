"""Feeds the loop with steps, and leaves shards out that cannot be read when all ranks have agreed on it."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict

from scaletrain.data.dataset import SequenceDataset
from scaletrain.data.loader import StepBatch, StepStream
from scaletrain.engine.engine import Engine
from scaletrain.errors import BadShardError, DataError, UnreachableError
from scaletrain.protocols import Run, SkippedShard, TrainingState
from scaletrain.training.skipped import SKIP_EVENT

logger = logging.getLogger(__name__)

_MOST_SKIPPED_SHARE = 0.1
"""Of a source's shards that may be left out; one always may. More is no mishap but another corpus."""


class Feed:
    """This rank's part of each step, from where the run stands.

    A shard that cannot be read is met by one rank, or by several at different times, because they fetch ahead. So it is
    left out from a step that all ranks agree on, and what was fetched ahead is fetched anew from there.
    """

    def __init__(
        self,
        open_dataset: Callable[[tuple[SkippedShard, ...]], SequenceDataset],
        open_stream: Callable[[SequenceDataset, TrainingState], StepStream],
        engine: Engine,
        may_skip: bool,
    ) -> None:
        """Opens nothing yet.

        Args:
            open_dataset: Makes the run's sequences, without the shards given.
            open_stream: Starts to fetch at a state.
            engine: Lets the ranks tell each other what they met.
            may_skip: Whether a shard that cannot be read may be left out.
        """
        self._open_dataset = open_dataset
        self._open_stream = open_stream
        self._engine = engine
        self._may_skip = may_skip
        self._dataset: SequenceDataset | None = None
        self._stream: StepStream | None = None

    def start(self, state: TrainingState) -> None:
        """Starts to fetch where the run stands."""
        self.close()
        self._dataset = self._open_dataset(state.skipped)
        self._stream = self._open_stream(self._dataset, state)

    def fetch(self) -> tuple[StepBatch | None, DataError | None]:
        """The next step's data, or why there is none: raised at once, it would leave the other ranks waiting."""
        assert self._stream is not None  # started before the loop
        try:
            return next(self._stream), None
        except DataError as error:
            return None, error

    def settle(self, problem: DataError | None, run: Run) -> None:
        """Goes on without the shards that ranks could not read; every rank calls it when one met a problem.

        Args:
            problem: What this rank met.
            run: The run, at the step that could not be fetched.

        Raises:
            UnreachableError: Storage cannot be reached, and more than the shard may be out of reach.
            DataError: Shards must not be left out, too many would be, or something else went wrong.
        """
        told = self._engine.collect_texts(json.dumps(self._describe(problem, run)))
        problems = [found for text in told if (found := json.loads(text)) is not None]
        shards = {
            (found["shard"]["source"], found["shard"]["shard"]): found
            for found in problems
            if found["shard"] is not None
        }
        if not self._may_skip or any(found["shard"] is None for found in problems):
            # All ranks raise what one has found: only the first of a node is heard.
            message = "\n".join(dict.fromkeys(found["message"] for found in problems))
            raise UnreachableError(message) if any(found["may_pass"] for found in problems) else DataError(message)
        messages = [shards[key]["message"] for key in sorted(shards)]
        left_out = [SkippedShard(**shards[key]["shard"]) for key in sorted(shards)]
        # Before they are recorded: the next start leaves out what is recorded, and would not ask again.
        self._refuse_too_many([*run.state.skipped, *left_out], messages)
        for skipped, message in zip(left_out, messages, strict=True):
            run.record_event(SKIP_EVENT, reason=message, **asdict(skipped))
            if run.is_main:
                logger.warning(
                    "goes on without shard %s from sequence %d: %s", skipped.path, skipped.from_sequence, message
                )
        run.state.skipped = (*run.state.skipped, *left_out)
        self.start(run.state)

    def close(self) -> None:
        """Ends the workers."""
        if self._stream is not None:
            self._stream.close()

    def _describe(self, problem: DataError | None, run: Run) -> dict[str, object] | None:
        if problem is None:
            return None
        if not isinstance(problem, BadShardError):
            return {"message": str(problem), "may_pass": isinstance(problem, UnreachableError), "shard": None}
        assert self._dataset is not None  # it met the problem
        reader = self._dataset.readers[self._dataset.names.index(problem.source)]
        # Where the others are out of reach too, it is the storage that is away, and not the shard that is bad.
        if self._may_skip and not reader.can_read_others(problem.shard):
            message = f"{problem} Others of {problem.source} cannot be read either, so that none is left out."
            return {"message": message, "may_pass": True, "shard": None}
        path = reader.describe(problem.shard)
        skipped = SkippedShard(problem.source, problem.shard, path, run.state.sequences, problem.of_index)
        return {"message": str(problem), "may_pass": problem.may_pass, "shard": asdict(skipped)}

    def _refuse_too_many(self, left_out: Sequence[SkippedShard], messages: Sequence[str]) -> None:
        assert self._dataset is not None
        for reader in self._dataset.readers:
            shards = {skipped.shard for skipped in left_out if skipped.source == reader.name}
            if len(shards) > max(1, int(_MOST_SKIPPED_SHARE * len(reader.shards))):
                raise DataError(
                    f"{len(shards)} of the {len(reader.shards)} shards of {reader.name} cannot be read, more than "
                    f"data.on_bad_shard skip leaves out ({_MOST_SKIPPED_SHARE:.0%}). Restore them: "
                    + ", ".join(sorted(reader.describe(shard) for shard in shards))
                    + ". Now: "
                    + " ".join(messages)
                )
