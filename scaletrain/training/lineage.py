"""Which checkpoints are part of a run: not those behind a step that it later went back to, in a start or a rollback."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from scaletrain.launch.events import read_events
from scaletrain.protocols import SequenceRange, TrainingState
from scaletrain.training.skipped import ROLLBACK_EVENT


@dataclass(frozen=True)
class Lineage:
    """How a run has come to where it is, from its diary.

    Attributes:
        begun: For each start its number and the step that it went on from.
        gone_back: For each rollback what it left out, and the step that it went back to.
        last_saved: The step of the last checkpoint on shared storage; None before the first.
    """

    begun: tuple[tuple[int, int], ...] = ()
    gone_back: tuple[tuple[SequenceRange, int], ...] = ()
    last_saved: int | None = None

    def find_break(self, content: Mapping[str, Any]) -> str | None:
        """Why a checkpoint is no part of the run any more.

        A node's own disk may hold it still, or storage that was away when the run went on without it. To go on from it
        would leave a hole in the run's record, and mix what two starts have trained.

        Args:
            content: Its state.json.

        Returns:
            The reason; None for a part of the run.
        """
        state = TrainingState.from_json(content["training"])
        attempt = content.get("attempt")
        for number, step in self.begun:
            if attempt is not None and number > attempt and step < state.step:
                return f"start {number} went on from step {step} without it, so that it is no part of the run any more"
        for left_out, step in self.gone_back:
            if step < state.step and left_out not in state.skipped_sequences:
                return f"the run has gone back to step {step}, so that it is no part of it any more"
        return None


def read_lineage(run_dir: Path) -> Lineage:
    """Reads a run's diary.

    Args:
        run_dir: The run directory.
    """
    begun, gone_back, last_saved = [], [], None
    for event in read_events(run_dir / "events.jsonl"):
        kind = event.get("event")
        if kind in ("start", "resume"):
            begun.append((int(event["attempt"]), int(event["step"])))
        elif kind == ROLLBACK_EVENT:
            left_out = SequenceRange(int(event["first_sequence"]), int(event["stop_sequence"]))
            gone_back.append((left_out, int(event["to_step"])))
        elif kind == "save" and event.get("tier", "shared") == "shared":
            last_saved = int(event["step"])
    return Lineage(tuple(begun), tuple(gone_back), last_saved)


def shared_lineage(run_dir: Path) -> Lineage:
    """What rank 0 reads of the run, on all ranks; every rank calls it.

    Args:
        run_dir: The run directory.
    """
    told = [read_lineage(run_dir) if dist.get_rank() == 0 else Lineage()]
    dist.broadcast_object_list(told, src=0)
    return told[0]
