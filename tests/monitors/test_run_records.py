"""What is read of a run directory, and what becomes of a run that never had an attempt."""

import json
from pathlib import Path

import pytest

from scaletrain.errors import ConfigError
from scaletrain.launch.verdicts import Verdict, verdict_path, write_verdict
from scaletrain.monitors.goodput_page import page
from scaletrain.monitors.goodput_summary import summarize
from scaletrain.monitors.goodput_text import report_lines
from scaletrain.monitors.jsonl_writer import JsonlWriter
from scaletrain.monitors.run_records import read_run

NOTHING_NUMBERED = "starts that ended before they had a number: "


def fails_to_start(run_dir: Path, pid: int, time_s: float, *reasons: str) -> None:
    """One start of as many ranks as there are reasons; each rank ends a second after the one before."""
    for rank, reason in enumerate(reasons):
        path = write_verdict(run_dir, None, rank, Verdict.USER_ERROR, reason, pid=pid + rank)
        path.write_text(json.dumps(json.loads(path.read_text()) | {"time_s": time_s + rank}))


def test_starts_without_a_number_are_counted_and_the_last_one_is_explained(tmp_path: Path) -> None:
    fails_to_start(tmp_path, 500, 1000.0, "the corpus is gone", "the store went away")
    fails_to_start(tmp_path, 100, 2000.0, "train.lr is\nno number", "the store went away")
    (tmp_path / "exit/unclaimed/torn.json").write_text("{")
    records = read_run(tmp_path)
    summary = summarize(records)
    told = [line for line in report_lines(summary, "x") if NOTHING_NUMBERED in line]
    assert told == [f"{NOTHING_NUMBERED}2, the last as user_error: rank 0: train.lr is no number"]
    assert NOTHING_NUMBERED + "2" in page(summary, records.lines, "x")


def test_a_run_without_an_attempt_is_told_without_tables_of_zeros(tmp_path: Path) -> None:
    fails_to_start(tmp_path, 500, 1000.0, "the corpus is gone")
    summary = summarize(read_run(tmp_path))
    text = "\n".join(report_lines(summary, "x"))
    assert text.startswith("x: no attempt was numbered yet\n")
    for absent in ("goodput", "wall time", "lost", "interruptions", "saves", "attempt  start"):
        assert absent not in text
    assert "<svg" not in page(summary, [], "x") and "<table" not in page(summary, [], "x")


def test_verdicts_of_attempts_are_no_starts_without_a_number(tmp_path: Path) -> None:
    write_verdict(tmp_path, 1, 0, Verdict.CRASH, "died")
    verdict_path(tmp_path, 1, 0, 1).with_name("launch.json").write_text('{"verdict": "none"}')
    records = read_run(tmp_path)
    assert [record["reason"] for record in records.verdicts[1]] == ["died"] and not records.unclaimed
    assert NOTHING_NUMBERED not in "\n".join(report_lines(summarize(records), "x"))


def test_a_folder_that_holds_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "exit/unclaimed").mkdir(parents=True)
    with pytest.raises(ConfigError, match="holds no run"):
        read_run(tmp_path)


def test_of_a_line_of_metrics_only_what_is_used_is_held_in_memory(tmp_path: Path) -> None:
    used = {"train/loss": 2.0, "perf/step_time_s": 1.0, "perf/data_wait_s": 0.5, "eval/loss": float("inf")}
    writer = JsonlWriter(tmp_path / "metrics.jsonl", 1)
    writer.write_text("text/config", 0, "x" * 10_000)
    writer.write(1, used | {"train/grad_norm": 1.0, "data/batch_hash": "a" * 1000})
    writer.close()
    first, second = read_run(tmp_path).lines
    assert set(first) == {"step", "attempt", "time_s"}
    assert {key: value for key, value in second.items() if key != "time_s"} == {"step": 1, "attempt": 1, **used}
