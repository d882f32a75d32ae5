"""When a job ends, and when a run must save so that it is done before."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaletrain.errors import ConfigError
from scaletrain.launch.deadline import Deadline, hard_end_s, is_stale, job_end_s, recent_saves_s
from scaletrain.launch.events import append_event

NOW_S = 1.6e9


@pytest.mark.parametrize(
    ("environ", "end_s"),
    [
        ({}, None),
        ({"SLURM_JOB_END_TIME": "1600000100"}, NOW_S + 100),
        ({"SLURM_JOB_END_TIME": "1600000100", "SCALETRAIN_JOB_END_TIME": "1600000200"}, NOW_S + 200),
        ({"SLURM_JOB_END_TIME": "Unknown"}, None),
        ({"SLURM_JOB_END_TIME": "0"}, None),
        ({"SLURM_JOB_END_TIME": "1600000005", "SCALETRAIN_JOB_END_TIME": ""}, NOW_S + 5),
        ({"SLURM_JOB_END_TIME": "1599999999"}, None),  # of a job before, in a shell that has kept it
    ],
)
def test_who_says_when_the_job_ends(environ: dict[str, str], end_s: float | None) -> None:
    assert job_end_s(environ, NOW_S) == end_s
    assert hard_end_s(environ, 30.0, NOW_S) == (None if end_s is None else end_s - 30)
    assert hard_end_s(environ, 0.0, NOW_S) is None
    assert is_stale(environ, NOW_S) == (environ.get("SLURM_JOB_END_TIME") == "1599999999")


@pytest.mark.parametrize("text", ["tomorrow", "-5", "inf", "nan"])
def test_a_time_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"SCALETRAIN_JOB_END_TIME=.* give Unix seconds"):
        job_end_s({"SCALETRAIN_JOB_END_TIME": text}, NOW_S)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1599999940", "is over: the job ended 60 s ago, at 2020-09-13 12:25:40 UTC; set it anew in each job"),
        ("1600000060000", "more than a year ahead; give Unix seconds, as date .* prints them .not milliseconds"),
    ],
)
def test_a_time_that_no_job_can_end_at_is_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=f"SCALETRAIN_JOB_END_TIME={text} .*{words}"):
        job_end_s({"SCALETRAIN_JOB_END_TIME": text}, NOW_S)


def test_saves_of_earlier_starts_tell_how_long_the_next_one_takes(tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    assert recent_saves_s(events) == []
    for seconds, tier in ((99.0, "shared"), *((float(n), "shared") for n in range(1, 11)), (500.0, "local")):
        append_event(events, "save", seconds=seconds, tier=tier)
    append_event(events, "save", seconds="?", tier="shared")
    assert recent_saves_s(events) == [float(n) for n in range(1, 11)]  # the last ten
    deadline = Deadline(1000.0, [60.0, 3.0])
    near = [now_s for now_s in range(1000) if deadline.is_near(float(now_s), 3.0)]
    assert near[0] == 1000 - 2 * (1 + 60) + 1


@pytest.mark.parametrize(("end_s", "left_s"), [(10_000, 2 * 120), (30, 15), (4, 2)])
def test_a_save_of_unknown_duration_gets_two_minutes_or_half_of_a_short_job(end_s: int, left_s: int) -> None:
    deadline = Deadline(float(end_s))
    near = [now_s for now_s in range(end_s) if deadline.is_near(float(now_s), 0.0)]
    # A step of one second, and twice its time.
    assert near[0] == max(1, end_s - left_s - 2 + 1)


durations = st.lists(st.floats(0.01, 500), min_size=1, max_size=60)


@given(durations, st.floats(0, 300), st.floats(1, 20_000))
def test_a_run_ends_with_time_for_a_step_and_a_save_and_not_much_earlier(
    steps_s: list[float], save_s: float, end_s: float
) -> None:
    deadline, now_s = Deadline(end_s, [save_s]), 0.0
    # A start that ends before its first step brings the run no further, and has nothing to save.
    assert not deadline.is_near(now_s, 0.0)
    for done, step_s in enumerate(steps_s):
        now_s += step_s
        longest_s = max(steps_s[: done + 1])
        near = deadline.is_near(now_s, save_s)
        assert near == (end_s - now_s < 2 * (longest_s + save_s))
        if not near and done + 1 < len(steps_s) and steps_s[done + 1] <= longest_s:
            # Another step as long as the longest, and the save, are done in time even if the run then goes on to end.
            assert now_s + steps_s[done + 1] + save_s <= end_s


def test_a_long_step_is_forgotten_in_the_end() -> None:
    deadline, now_s = Deadline(12_100.0), 4000.0
    deadline.is_near(0.0, 0.1)
    assert not deadline.is_near(now_s, 0.1)  # the first step compiled, and twice its time is left
    for _ in range(200):
        now_s += 1.0
        assert not deadline.is_near(now_s, 0.1)  # 7,900 s in the end


def test_without_an_end_there_is_no_deadline() -> None:
    deadline = Deadline(None)
    assert not any(deadline.is_near(now_s, 1e9) for now_s in (0.0, 1e9, 2e9))
