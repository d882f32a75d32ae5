"""What ended a launch, from real verdict files and logs."""

from pathlib import Path

import pytest

from scaletrain.launch.slurm.evidence import Outcome, quote, read_outcome
from scaletrain.launch.verdicts import Verdict, write_verdict

RANKS = {0: "n1", 1: "n2"}


@pytest.fixture
def read(tmp_path: Path) -> "Launched":
    return Launched(tmp_path)


class Launched:
    def __init__(self, folder: Path) -> None:
        self.run_dir, self.log_dir = folder, folder / "logs"
        self.log_dir.mkdir()
        (folder / "exit" / "1").mkdir(parents=True)

    def verdict(self, rank: int, verdict: Verdict, reason: str, attempt: int | None = 2, **fields: object) -> None:
        write_verdict(self.run_dir, attempt, rank, verdict, reason, **fields)  # type: ignore[arg-type]

    def log(self, rank: int, text: str) -> None:
        (self.log_dir / f"rank-{rank:05d}.log").write_text(text)

    def outcome(self, exit_code: int | None = 1) -> Outcome:
        return read_outcome(self.run_dir, self.log_dir, 1, 0.0, RANKS, exit_code)


def test_all_complete_is_complete_and_less_is_not(read: Launched) -> None:
    read.verdict(0, Verdict.COMPLETE, "all steps are done")
    assert read.outcome(0).verdict is Verdict.CRASH
    read.verdict(1, Verdict.COMPLETE, "all steps are done")
    assert read.outcome(0).verdict is Verdict.COMPLETE


def test_an_older_attempt_says_nothing(read: Launched) -> None:
    read.verdict(0, Verdict.COMPLETE, "done", attempt=1)
    read.verdict(1, Verdict.COMPLETE, "done", attempt=1)
    outcome = read.outcome(9)
    assert outcome.verdict is Verdict.CRASH
    assert "code 9" in outcome.reason


def test_who_knows_why_counts_before_who_saw_it_gone(read: Launched) -> None:
    read.verdict(0, Verdict.CRASH, "Connection closed by peer")
    read.verdict(1, Verdict.USER_ERROR, "no such shard")
    assert read.outcome() == Outcome(Verdict.USER_ERROR, "rank 1 on n2: no such shard")


def test_a_killed_rank_is_named_before_its_peers(read: Launched) -> None:
    read.verdict(0, Verdict.CRASH, "Connection closed by peer")
    read.verdict(1, Verdict.CRASH, "ended by signal 9 (SIGKILL) without a verdict", manner="signal 9 (SIGKILL)")
    assert read.outcome().reason.startswith("rank 1 on n2")


def test_a_rank_killed_with_its_launcher_is_not_the_cause(read: Launched) -> None:
    read.verdict(0, Verdict.CRASH, "its launcher (process 5) ended", manner="signal 9 (SIGKILL)")
    read.verdict(1, Verdict.CRASH, "division by zero")
    assert read.outcome().reason == "rank 0 on n1: its launcher (process 5) ended"
    # Both failed without being struck from outside: the first in time is told.


def test_a_process_that_never_knew_its_attempt_is_heard(read: Launched) -> None:
    read.verdict(0, Verdict.USER_ERROR, "the run directory is in use", attempt=None)
    assert read.outcome().verdict is Verdict.USER_ERROR


def test_hosts_that_a_verdict_blames_are_sick(read: Launched) -> None:
    read.verdict(0, Verdict.SICK_NODE, "ranks differ", hosts=["n2"])
    assert list(read.outcome().sick) == ["n2"]


@pytest.mark.parametrize(
    ("text", "verdict", "sick"),
    [
        ("RuntimeError: CUDA error: uncorrectable ECC error encountered", Verdict.SICK_NODE, ["n2"]),
        ("ModuleNotFoundError: No module named 'webdataset'", Verdict.USER_ERROR, []),
        ("RuntimeError: something", Verdict.CRASH, []),
    ],
)
def test_a_crash_is_looked_up_in_the_logs(read: Launched, text: str, verdict: Verdict, sick: list[str]) -> None:
    read.verdict(0, Verdict.CRASH, "Connection closed by peer")
    read.log(0, "starts\n")
    read.log(1, f"Traceback (most recent call last):\n{text}\n")
    outcome = read.outcome()
    assert (outcome.verdict, list(outcome.sick)) == (verdict, sick)


def test_the_end_of_a_log_is_quoted(read: Launched) -> None:
    read.log(0, "\n".join(map(str, range(100))))
    assert quote(read.log_dir / "rank-00000.log")[-2:] == ["98", "99"]
    assert quote(read.log_dir / "nothing.log") == []
