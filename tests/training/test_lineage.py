"""Which checkpoints are part of a run, as its diary tells."""

from pathlib import Path
from typing import Any

from scaletrain.launch.events import append_event
from scaletrain.protocols import SequenceRange, TrainingState
from scaletrain.training.lineage import Lineage, read_lineage


def checkpoint(step: int, attempt: int | None, *left_out: SequenceRange) -> dict[str, Any]:
    state = TrainingState(step=step, skipped_sequences=left_out)
    return {"training": state.to_json()} | ({} if attempt is None else {"attempt": attempt})


def test_what_a_later_start_went_on_without_is_no_part_of_the_run(tmp_path: Path) -> None:
    diary = tmp_path / "events.jsonl"
    for attempt, kind, step in ((1, "start", 0), (2, "resume", 5), (3, "resume", 7)):
        append_event(diary, kind, attempt=attempt, step=step)
    append_event(diary, "save", attempt=3, step=9, tier="local")
    lineage = read_lineage(tmp_path)
    assert lineage == Lineage(((1, 0), (2, 5), (3, 7)), (), None)
    assert lineage.find_break(checkpoint(5, 1)) is None
    assert "start 2 went on from step 5 without it" in str(lineage.find_break(checkpoint(9, 1)))
    assert lineage.find_break(checkpoint(7, 2)) is None
    assert "start 3 went on from step 7" in str(lineage.find_break(checkpoint(8, 2)))
    assert lineage.find_break(checkpoint(12, 3)) is None
    # Written before starts were noted in checkpoints.
    assert lineage.find_break(checkpoint(12, None)) is None


def test_what_lies_behind_a_rollback_is_no_part_of_the_run(tmp_path: Path) -> None:
    diary = tmp_path / "events.jsonl"
    append_event(diary, "start", attempt=1, step=0)
    append_event(diary, "save", attempt=1, step=10)
    append_event(diary, "rollback", attempt=1, step=14, to_step=10, first_sequence=48, stop_sequence=56)
    lineage, left_out = read_lineage(tmp_path), SequenceRange(48, 56)
    assert lineage.last_saved == 10
    assert lineage.find_break(checkpoint(10, 1)) is None
    assert "gone back to step 10" in str(lineage.find_break(checkpoint(12, 1)))
    assert lineage.find_break(checkpoint(12, 1, left_out)) is None
