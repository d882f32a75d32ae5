"""When a job ends, and when a run must save so that it is done before."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaletrain.errors import ConfigError
from scaletrain.launch.deadline import Deadline, hard_end_s, job_end_s


@pytest.mark.parametrize(
    ("environ", "end_s"),
    [
        ({}, None),
        ({"SLURM_JOB_END_TIME": "1700000000"}, 1.7e9),
        ({"SLURM_JOB_END_TIME": "1700000000", "SCALETRAIN_JOB_END_TIME": "1700000100"}, 1.7e9 + 100),
        ({"SLURM_JOB_END_TIME": "Unknown"}, None),
        ({"SLURM_JOB_END_TIME": "0"}, None),
        ({"SLURM_JOB_END_TIME": "5", "SCALETRAIN_JOB_END_TIME": ""}, 5.0),
    ],
)
def test_who_says_when_the_job_ends(environ: dict[str, str], end_s: float | None) -> None:
    assert job_end_s(environ) == end_s
    assert hard_end_s(environ, 30.0) == (None if end_s is None else end_s - 30)
    assert hard_end_s(environ, 0.0) is None


@pytest.mark.parametrize("text", ["tomorrow", "-5", "inf", "nan"])
def test_a_time_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"SCALETRAIN_JOB_END_TIME=.* give Unix seconds"):
        job_end_s({"SCALETRAIN_JOB_END_TIME": text})


durations = st.lists(st.floats(0.01, 500), min_size=1, max_size=60)


@given(durations, st.floats(0, 300), st.floats(1, 20_000))
def test_a_run_ends_with_time_for_a_step_and_a_save_and_not_much_earlier(
    steps_s: list[float], save_s: float, end_s: float
) -> None:
    deadline, now_s = Deadline(end_s), 0.0
    assert deadline.is_near(now_s, save_s) == (end_s < 2 * save_s)
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
    deadline.is_near(0.0, 0.0)
    assert not deadline.is_near(now_s, 0.0)  # the first step compiled, and twice its time is left
    for _ in range(200):
        now_s += 1.0
        assert not deadline.is_near(now_s, 0.0)  # 7,900 s in the end


def test_without_an_end_there_is_no_deadline() -> None:
    deadline = Deadline(None)
    assert not any(deadline.is_near(now_s, 1e9) for now_s in (0.0, 1e9, 2e9))
