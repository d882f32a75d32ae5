"""Reading a part of a metrics file: what it says is what the whole file says, and the rest is not read."""

import io
import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaletrain.monitors.goodput import Spent, account
from scaletrain.monitors.jsonl_writer import parse_line, read_records
from scaletrain.monitors.metrics_sample import find_last, lines_between, read_sample, read_tail
from scaletrain.monitors.run_records import USED, RunRecords
from scaletrain.monitors.status_records import observe
from scaletrain.monitors.status_warnings import status_of

T0 = 1_790_000_000.0


def line_of(step: int, time_s: float, attempt: int = 1, step_s: float = 1.0) -> dict[str, Any]:
    return {
        "step": step,
        "attempt": attempt,
        "time_s": time_s,
        "train/loss": 2.0 + 1 / step,
        "perf/step_time_s": step_s,
        "perf/data_wait_s": step_s / 10,
        "data/batch_hash": "0123456789abcdef" * 2,
    }


def write(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def interrupted_run() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Five attempts, each of which goes on 300 steps before the end of the one before; steps get slower."""
    lines, events, now_s, step = [], [], T0, 0
    for attempt in range(1, 6):
        step = max(0, step - 300)
        events.append({"event": "resume", "attempt": attempt, "time_s": now_s + 50, "step": step, "launched_s": now_s})
        now_s += 60
        for _ in range(1500 + 200 * attempt):
            step += 1
            step_s = 1.0 + step / 5000
            now_s += step_s + 0.2
            lines.append(line_of(step, now_s, attempt, step_s))
            if step % 500 == 0:
                lines.append({"step": step, "attempt": attempt, "time_s": now_s, "eval/loss": 3.0})
        folder = f"step_{step - 300:08d}"
        events.append({"event": "save", "attempt": attempt, "time_s": now_s, "step": step - 300, "folder": folder})
        now_s += 500
    return lines, events


def test_a_sample_accounts_for_time_as_the_whole_file_does(tmp_path: Path) -> None:
    lines, events = interrupted_run()
    write(tmp_path / "metrics.jsonl", lines)
    sample = read_sample(tmp_path / "metrics.jsonl", USED, whole_bytes=1000)
    assert not sample.is_exact and len(sample.lines) < len(lines) / 20
    whole, told = account(RunRecords(events, lines)), account(RunRecords(events, sample.lines))
    assert told.wall_us == whole.wall_us
    assert [attempt.steps[0].step for attempt in told.attempts] == [one.steps[0].step for one in whole.attempts]
    assert [attempt.steps[-1].step for attempt in told.attempts] == [one.steps[-1].step for one in whole.attempts]
    for spent in Spent:
        assert told.shares_us[spent] / told.wall_us == pytest.approx(whole.shares_us[spent] / whole.wall_us, abs=0.01)
    assert whole.shares_us[Spent.LOST] / whole.wall_us > 0.05  # which is no share that 0.01 hides


def test_a_short_file_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, interrupted_run()[0][:100])
    sample = read_sample(path, USED)
    assert sample.is_exact and list(sample.lines) == read_records(path, USED)


@given(st.lists(st.integers(0, 60), max_size=40), st.integers(1, 500), st.booleans())
def test_the_tail_is_the_end(tmp_path_factory: pytest.TempPathFactory, sizes: list[int], most: int, torn: bool) -> None:
    path = tmp_path_factory.mktemp("tail") / "metrics.jsonl"
    raw = [
        (json.dumps({"step": step, "attempt": 1, "text": "x" * size}) + "\n").encode()
        for step, size in enumerate(sizes, 1)
    ]
    path.write_bytes(b"".join(raw) + (b'{"step": 99, "att' if torn else b""))
    total = path.stat().st_size
    places = [sum(map(len, raw[:number])) for number in range(len(raw))]
    expected = [parse_line(one) for one, place in zip(raw, places, strict=True) if place >= total - most]
    assert read_tail(path, most) == expected


@given(st.lists(st.integers(0, 9), max_size=20), st.lists(st.integers(0, 120), max_size=6), st.booleans())
def test_ranges_that_meet_share_no_line_and_lose_none(sizes: list[int], cuts: list[int], torn: bool) -> None:
    lines = [b"x" * size + b"\n" for size in sizes] + ([b"torn"] if torn else [])
    file = io.BytesIO(b"".join(lines))
    places = sorted({0, *cuts, 300})
    assert [line for start, stop in pairwise(places) for line in lines_between(file, start, stop)] == lines


def test_the_last_evaluation_is_found_far_from_the_end(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [line_of(step, T0 + step) for step in range(1, 8000)]
    for step in (10, 20):
        lines.insert(step, {"step": step, "attempt": 1, "time_s": T0, "eval/loss": float(step)})
    write(path, lines)
    with path.open("ab") as file:
        file.write(b'{"step": 9000, "attempt": 1, "eval/loss": 1')
    assert path.stat().st_size > 1 << 20
    found = find_last(path, "eval/loss")
    assert found is not None and found["eval/loss"] == 20.0
    assert find_last(path, "eval/loss", most_bytes=1 << 20) is None
    assert find_last(path, "eval/none") is None


def test_what_is_missing_or_no_metrics_gives_nothing(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert (read_tail(path), find_last(path, "eval/loss"), read_sample(path, USED).lines) == ([], None, ())
    path.write_bytes(b"\x00\xff\n" * 5000)
    assert (read_tail(path), find_last(path, "eval/loss"), read_sample(path, USED, 100).lines) == ([], None, ())


def test_the_status_of_a_run_of_weeks_takes_a_moment(tmp_path: Path) -> None:
    (tmp_path / "exit/1").mkdir(parents=True)
    with (tmp_path / "metrics.jsonl").open("wb") as file:
        for first in range(1, 200_001, 4000):
            numbered = (line_of(step, T0 + step) | {"pad": "x" * 200} for step in range(first, first + 100))
            block = "".join(json.dumps(line) + "\n" for line in numbered).encode()
            file.write(block * 40)
    assert (tmp_path / "metrics.jsonl").stat().st_size > 60e6
    begun_s = time.process_time()
    status = status_of(observe(tmp_path))
    taken_s = time.process_time() - begun_s
    assert status.training is not None and status.training.step == 196_100
    assert taken_s < 1.0, f"{taken_s:.2f} s of a processor"
