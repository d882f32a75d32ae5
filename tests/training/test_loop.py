"""The loop ends all ranks at one step, whoever was asked, and tells its callbacks in the promised order."""

import signal
from pathlib import Path

import pytest

from scaletrain.errors import CheckpointError
from scaletrain.launch.events import read_events
from tests.distributed import run_on_ranks
from tests.training import bodies
from tests.training.bodies import Job


def events_of(folder: Path) -> list[tuple[str, int]]:
    return [(event["event"], event["step"]) for event in read_events(folder / "events.jsonl")]


def test_hooks_come_in_order_and_in_reverse_at_the_end(tmp_path: Path) -> None:
    (result,) = run_on_ranks(1, bodies.start, Job(str(tmp_path), max_steps=3, background=False))
    assert result["verdict"] == "complete" and result["seen_steps"] == 3
    assert result["notes"] == [
        *("first start 0", "second start 0"),
        *("first step 1", "second step 1"),
        *("first step 2", "second step 2", "first save 2", "second save 2"),
        *("first step 3", "second step 3"),
        # Checkpointing stands last, so that its end, the last save, comes first.
        *("first save 3", "second save 3", "second end 3", "first end 3"),
    ]
    assert result["state"]["sequences"] == 24 and result["state"]["optimizer_steps"] == 3
    assert result["state"]["target_tokens"] > 0
    assert events_of(tmp_path) == [("save", 2), ("save", 3)]


@pytest.mark.parametrize(
    ("number", "verdict"), [(signal.SIGTERM, "requeue"), (signal.SIGUSR2, "requeue"), (signal.SIGINT, "stopped")]
)
def test_a_signal_to_one_rank_ends_all_at_the_same_step(tmp_path: Path, number: int, verdict: str) -> None:
    results = run_on_ranks(2, bodies.start, Job(str(tmp_path), every_steps=0, signal_at=(1, 3, number)))
    assert [result["verdict"] for result in results] == [verdict, verdict]
    # Step 3 was fetched when the signal came; it is not trained.
    assert [result["state"]["step"] for result in results] == [3, 3]
    assert events_of(tmp_path) == [("signal", 3), ("save", 3)]
    reasons = [event["reason"] for event in read_events(tmp_path / "events.jsonl") if event["event"] == "signal"]
    assert reasons == ["asked on another rank"]


def test_data_that_one_rank_cannot_read_ends_all_with_its_words(tmp_path: Path) -> None:
    results = run_on_ranks(2, bodies.start, Job(str(tmp_path), background=False, bad_data_at=(1, 3)))
    assert [result["error"] for result in results] == ["DataError: shard of rank 1 is damaged"] * 2
    for result in results:
        assert result["notes"][-2:] == ["second end 3", "first end 3"]
    # All of them stand at the same border, so that what is done is saved.
    assert events_of(tmp_path) == [("save", 2), ("save", 3)]


def test_whoever_is_asked_to_stop_heeds_it_before_data_that_cannot_be_read(tmp_path: Path) -> None:
    job = Job(str(tmp_path), background=False, bad_data_at=(1, 3), signal_at=(0, 3, signal.SIGTERM))
    results = run_on_ranks(2, bodies.start, job)
    assert [result["verdict"] for result in results] == ["requeue", "requeue"]
    assert events_of(tmp_path)[-2:] == [("signal", 3), ("save", 3)]


def test_a_training_that_has_diverged_is_given_up(tmp_path: Path) -> None:
    job = Job(str(tmp_path), max_steps=1000, nan_from=2, every_steps=2, keep_last=1)
    results = run_on_ranks(2, bodies.start, job)
    for result in results:
        assert result["error"].startswith("DivergenceError: 5 steps in a row") and "optim.lr" in result["error"]
        assert "no rank alone" in result["error"]  # the NaN comes behind where each rank looks at its own
        assert result["state"] == results[0]["state"] and result["state"]["optimizer_steps"] == 2
    # Of all that was saved since, nothing took the place of what was saved before.
    assert (tmp_path / "checkpoints" / "step_00000002" / "COMPLETE").exists()


def test_a_callback_that_fails_is_not_swallowed(tmp_path: Path) -> None:
    (result,) = run_on_ranks(1, bodies.start, Job(str(tmp_path), raise_at=2))
    assert result["error"] == "ValueError: a callback that fails"
    assert result["notes"][-2:] == ["second exception ValueError 2", "first exception ValueError 2"]


def test_a_callback_can_find_the_run_complete(tmp_path: Path) -> None:
    job = Job(str(tmp_path), max_steps=1000, every_steps=0, complete_at=3)
    for result in run_on_ranks(2, bodies.start, job):
        assert (result["verdict"], result["reason"]) == ("complete", "there is nothing left to learn")
        assert result["notes"][-4:] == ["first save 3", "second save 3", "second end 3", "first end 3"]
    assert events_of(tmp_path) == [("save", 3)]


def test_a_run_that_keeps_no_checkpoint_writes_none(tmp_path: Path) -> None:
    job = Job(str(tmp_path), max_steps=5, every_steps=0, keep_last=0, save_at=2)
    for result in run_on_ranks(2, bodies.start, job):
        assert (result["verdict"], result["state"]["step"]) == ("complete", 5)
        assert result["notes"][-2:] == ["second end 5", "first end 5"]
    assert events_of(tmp_path) == [("save_request", 2)]
    assert not list((tmp_path / "checkpoints").glob("*"))


def test_a_file_has_the_run_saved_and_go_on(tmp_path: Path) -> None:
    results = run_on_ranks(2, bodies.start, Job(str(tmp_path), max_steps=5, every_steps=0, save_at=2))
    assert [result["verdict"] for result in results] == ["complete", "complete"]
    # The file was there when step 2 was fetched; the checkpoint is of the border after that step.
    assert events_of(tmp_path) == [("save_request", 2), ("save", 3), ("save", 5)]
    assert not (tmp_path / "save").exists()


def test_without_a_signal_a_run_saves_before_its_job_ends(tmp_path: Path) -> None:
    job = Job(str(tmp_path), max_steps=1_000_000, every_steps=0, ends_in_s=2.0)
    results = run_on_ranks(2, bodies.start, job)
    assert [result["verdict"] for result in results] == ["requeue", "requeue"]
    assert results[0]["reason"] == "the job ends soon"
    step = results[0]["state"]["step"]
    assert step > 2 and events_of(tmp_path) == [("signal", step), ("save", step)]


@pytest.mark.parametrize(
    ("raised", "number", "verdict", "error"),
    [
        (OSError, signal.SIGTERM, "requeue", ""),
        (CheckpointError, signal.SIGINT, "stopped", ""),
        (ValueError, signal.SIGTERM, "", "ValueError: no space left"),
        (OSError, None, "", "OSError: no space left"),
    ],
)
def test_whoever_is_asked_to_end_keeps_its_verdict_where_the_last_save_fails(
    tmp_path: Path, raised: type[Exception], number: int | None, verdict: str, error: str
) -> None:
    signal_at = None if number is None else (0, 2, number)
    job = Job(str(tmp_path), max_steps=3, every_steps=0, signal_at=signal_at, end_raises=raised)
    (result,) = run_on_ranks(1, bodies.start, job)
    assert (result["verdict"], result["error"]) == (verdict, error)
    if verdict:
        assert result["reason"].endswith("; the last save failed: no space left")
        # All callbacks hear of it, so that metrics are kept.
        assert result["notes"][-1] == f"first exception {raised.__name__} 2"
