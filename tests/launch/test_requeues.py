import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaletrain.launch.requeues import START_S, count_requeues, measured_step_s, planned_s, requeue_lines
from scaletrain.launch.slurm.batch_options import Option, time_limit_s
from scaletrain.planning.report import format_duration


@given(training_s=st.floats(0, 1e8), limit_s=st.floats(60, 1e6), lead_s=st.floats(0, 3600))
def test_so_many_starts_are_enough_and_one_less_is_not(training_s: float, limit_s: float, lead_s: float) -> None:
    requeues = count_requeues(training_s, limit_s, lead_s)
    usable_s = limit_s - START_S - lead_s
    if requeues is None:
        assert usable_s <= 0
        return
    assert (requeues + 1) * usable_s >= training_s * (1 - 1e-9)
    assert requeues == 0 or requeues * usable_s < training_s * (1 + 1e-9)


def test_a_training_that_just_fits_needs_none() -> None:
    limit_s = 3600 + START_S + 180
    assert [count_requeues(s, limit_s, 180) for s in (0, 3600, 3601, 7200, 7201)] == [0, 0, 1, 1, 2]


def test_the_step_time_is_that_of_the_last_steps(tmp_path: Path) -> None:
    assert measured_step_s(tmp_path) is None
    times = [9.0] * 300 + [2.0] * 150 + [70.0]  # a slow beginning, and one step with an evaluation
    lines = [json.dumps({"step": step, "perf/step_time_s": one}) for step, one in enumerate(times)]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"eval/loss": 3.0}', '{"perf/step_time_s": 1']))
    assert measured_step_s(tmp_path) == 2.0
    (tmp_path / "metrics.jsonl").write_text('{"eval/loss": 3.0}\n')
    assert measured_step_s(tmp_path) is None


@pytest.mark.parametrize("seconds", [5.0, 300.0, 7000.0, 90_000.0, 3e7])
def test_the_time_is_found_as_a_plan_writes_it(seconds: float) -> None:
    lines = ["tokens         5 a step", f"time           {format_duration(seconds)} at 40% of 989.4 TFLOP/s"]
    found = planned_s(lines)
    assert found is not None
    assert found[0] == pytest.approx(seconds, rel=0.05)
    assert found[1] == "at 40% of 989.4 TFLOP/s"
    assert planned_s(lines[:1]) is None


def lines(estimate: tuple[float, str] | None = (360_000.0, "1,000 steps of 360 s"), **texts: str) -> str:
    options = {name.replace("_", "-"): Option(text, "line 3") for name, text in texts.items()}
    limit_s = time_limit_s(texts["time"]) if "time" in texts else None
    return "\n".join(requeue_lines(options, limit_s, estimate))


def test_what_is_told_of_requeues() -> None:
    told = lines(time="12:00:00", signal="B:USR2@600")
    assert told.startswith("8: 100.0 h of training, 11.8 h in each start\n")  # 100 h in starts of 11 h 47 min
    assert "1,000 steps of 360 s" in told and "600 s are left" in told and "180 s go to checks" in told
    assert lines(time="UNLIMITED").startswith("none by the time limit: there is no limit")
    assert "the partition's limit holds" in lines()
    assert "--time is too short" in lines(time="4")
    assert "--no-requeue (line 3) forbids it" in lines(time="12:00:00", no_requeue="")
    assert lines(estimate=None, time="5:00:00").startswith("unknown: the plan has no time")
