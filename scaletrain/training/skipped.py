"""What a run keeps of the data that it has left out: read back by later starts, and by whoever looks at its data."""

from pathlib import Path

from scaletrain.launch.events import read_events
from scaletrain.protocols import SequenceRange, SkippedShard

SKIP_EVENT = "skip_shard"
ROLLBACK_EVENT = "rollback"


def recorded_skips(run_dir: Path) -> list[SkippedShard]:
    """The shards that a run has left out so far, from its diary."""
    fields = SkippedShard.__dataclass_fields__
    events = [event for event in read_events(run_dir / "events.jsonl") if event.get("event") == SKIP_EVENT]
    return [SkippedShard(**{name: event[name] for name in fields}) for event in events]


def recorded_ranges(run_dir: Path) -> list[SequenceRange]:
    """The sequences that a run has left out so far, one range for each rollback, from its diary."""
    events = [event for event in read_events(run_dir / "events.jsonl") if event.get("event") == ROLLBACK_EVENT]
    return [SequenceRange(event["first_sequence"], event["stop_sequence"]) for event in events]


def recorded_return(run_dir: Path) -> int | None:
    """The step that a run last went back to, from its diary; None where it never did."""
    events = [event for event in read_events(run_dir / "events.jsonl") if event.get("event") == ROLLBACK_EVENT]
    return events[-1]["to_step"] if events else None
