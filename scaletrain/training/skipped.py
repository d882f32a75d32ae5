"""What a run keeps of the shards that it has left out: read back by later starts, and by whoever looks at its data."""

from pathlib import Path

import torch.distributed as dist

from scaletrain.launch.events import read_events
from scaletrain.protocols import SkippedShard, TrainingState

SKIP_EVENT = "skip_shard"


def recorded_skips(run_dir: Path) -> list[SkippedShard]:
    """The shards that a run has left out so far, from its diary."""
    fields = SkippedShard.__dataclass_fields__
    events = [event for event in read_events(run_dir / "events.jsonl") if event.get("event") == SKIP_EVENT]
    return [SkippedShard(**{name: event[name] for name in fields}) for event in events]


def restore_skipped(run_dir: Path, state: TrainingState) -> None:
    """Adds the shards that an earlier start left out, also after the checkpoint that this one goes on from.

    Every rank calls it. So a step that is done again is done with the same data.

    Args:
        run_dir: The run directory.
        state: Where the run goes on; gets the shards.
    """
    told: list[tuple[SkippedShard, ...]] = [()]
    if dist.get_rank() == 0:
        told = [tuple(dict.fromkeys([*state.skipped, *recorded_skips(run_dir)]))]
    dist.broadcast_object_list(told, src=0)
    state.skipped = told[0]
