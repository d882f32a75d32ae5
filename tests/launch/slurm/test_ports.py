from hypothesis import given
from hypothesis import strategies as st

from scaletrain.launch.slurm.ports import check_port, training_port


def test_ports_of_jobs_that_follow_each_other_never_meet() -> None:
    blocks = [
        {training_port(job, launch) for launch in range(30)} | {check_port(job, turn) for turn in range(30)}
        for job in range(5_000, 6_100)
    ]
    assert sum(map(len, blocks)) == len(set().union(*blocks))
    assert min(map(min, blocks)) >= 10240
    assert max(map(max, blocks)) < 32768
    assert training_port(7, 1) != training_port(7, 2)


@given(job=st.integers(1, 2**31), launch=st.integers(1, 10_000), turn=st.integers(1, 10_000))
def test_what_one_job_does_at_once_has_ports_of_its_own(job: int, launch: int, turn: int) -> None:
    assert training_port(job, launch) != check_port(job, turn)
    assert training_port(job, launch) != training_port(job, launch + 1)
    assert check_port(job, turn) != check_port(job, turn + 1)
