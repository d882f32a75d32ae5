"""What ended a launch, from real verdict files and logs."""

import json
import os
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
        self.attempt(1, self.run_dir / "logs of another job")
        self.attempt(2, self.log_dir)

    def attempt(self, number: int, log_dir: Path) -> None:
        folder = self.run_dir / "exit" / str(number)
        folder.mkdir(parents=True)
        (folder / "launch.json").write_text(json.dumps({"log_dir": str(log_dir)}))

    def verdict(self, rank: int, verdict: Verdict, reason: str, attempt: int | None = 2, **fields: object) -> None:
        write_verdict(self.run_dir, attempt, rank, verdict, reason, **fields)  # type: ignore[arg-type]

    def log(self, rank: int, text: str) -> None:
        (self.log_dir / f"rank-{rank:05d}.log").write_text(text)

    def outcome(self, exit_code: int | None = 1) -> Outcome:
        return read_outcome(self.run_dir, self.log_dir, RANKS, exit_code)


def test_all_complete_is_complete_and_less_is_not(read: Launched) -> None:
    read.verdict(0, Verdict.COMPLETE, "all steps are done")
    assert read.outcome(0).verdict is Verdict.CRASH
    read.verdict(1, Verdict.COMPLETE, "all steps are done")
    assert read.outcome(0).verdict is Verdict.COMPLETE


def test_another_jobs_attempt_in_the_same_run_says_nothing(read: Launched) -> None:
    read.verdict(0, Verdict.COMPLETE, "done", attempt=1)
    read.verdict(1, Verdict.COMPLETE, "done", attempt=1)
    outcome = read.outcome(9)
    assert outcome.verdict is Verdict.CRASH
    assert "code 9" in outcome.reason


def test_who_knows_why_counts_before_who_saw_it_gone(read: Launched) -> None:
    read.verdict(0, Verdict.CRASH, "Connection closed by peer")
    read.verdict(1, Verdict.USER_ERROR, "no such shard")
    assert read.outcome() == Outcome(Verdict.USER_ERROR, "rank 1 on n2: no such shard")


def test_a_hang_names_the_machine_that_held_the_others_up(read: Launched) -> None:
    """As keepers write it, on all ranks alike; one of them was too late, and its rank saw its peers gone."""
    reason = "hang at step 12: rank 1 on h2 (GPU 3) did not arrive: stopped in forward of step 12 for 601 s"
    read.verdict(0, Verdict.CRASH, "Connection closed by peer")
    read.verdict(1, Verdict.HANG, reason, hosts=("h2",), **KILLED)
    # The reason names the rank; the one whose verdict it is may be any of those that waited.
    assert read.outcome(None) == Outcome(Verdict.HANG, reason, {"h2": reason})


KILLED = {"manner": "signal 9 (SIGKILL)", "written_by": "keeper"}
KILL = "ended by signal 9 (SIGKILL) without a verdict"


def test_a_killed_rank_is_named_before_its_peers(read: Launched) -> None:
    read.verdict(0, Verdict.CRASH, "Connection closed by peer", time_s=100.0)
    read.verdict(1, Verdict.CRASH, KILL, time_s=102.0, **KILLED)
    assert read.outcome().reason.startswith("rank 1 on n2")


def test_a_rank_that_the_launcher_kills_after_another_has_failed_is_not_the_cause(read: Launched) -> None:
    read.verdict(0, Verdict.CRASH, KILL, time_s=131.0, **KILLED)
    read.verdict(1, Verdict.CRASH, "division by zero", time_s=100.0)
    assert read.outcome().reason == "rank 1 on n2: division by zero"


@pytest.mark.parametrize(
    "reason",
    [
        f"its launcher (process 5) ended, and it was ended with it; {KILL}",
        f"rank 1 had ended before the first step (division by zero), and this waited; {KILL}",
        "asked on another rank",
    ],
)
def test_a_rank_that_only_followed_is_not_the_cause(read: Launched, reason: str) -> None:
    read.verdict(0, Verdict.CRASH, reason, time_s=100.0, **KILLED)
    read.verdict(1, Verdict.CRASH, "division by zero", time_s=101.0)
    assert read.outcome().reason == "rank 1 on n2: division by zero"


def test_of_equals_the_first_in_time_is_told(read: Launched) -> None:
    read.verdict(0, Verdict.CRASH, "second", time_s=101.0)
    read.verdict(1, Verdict.CRASH, "first", time_s=100.0)
    assert read.outcome().reason == "rank 1 on n2: first"


@pytest.mark.parametrize("heavier", range(6))
def test_the_weights_of_verdicts(read: Launched, heavier: int) -> None:
    """A peer of a rank that knows why only sees it gone, or was asked to end."""
    order = ["user_error", "gave_up", "stopped", "sick_node", "hang", "requeue", "crash"]
    read.verdict(0, Verdict(order[heavier + 1]), "only saw it", time_s=1.0)
    read.verdict(1, Verdict(order[heavier]), "knows why", time_s=2.0)
    outcome = read.outcome()
    assert outcome.verdict == order[heavier] and outcome.reason.endswith("knows why")


def test_verdicts_that_are_missing_or_garbage_are_counted(read: Launched) -> None:
    read.verdict(0, Verdict.COMPLETE, "all steps are done")
    (read.run_dir / "exit" / "2" / "1.json").write_text('{"verdict": "comp')
    outcome = read.outcome(0)
    assert outcome.verdict is Verdict.CRASH
    assert outcome.reason == "the step ended with code 0, and only 1 of 2 ranks left a verdict"


def test_a_step_that_had_to_be_killed_shows_the_log_that_was_written_last(read: Launched) -> None:
    read.log(0, "starts\n")
    read.log(1, "hangs\n")
    os.utime(read.log_dir / "rank-00000.log", (1, 1))
    outcome = read.outcome(None)
    assert outcome.reason == "the step had to be killed, and no rank left a verdict"
    assert outcome.log == read.log_dir / "rank-00001.log"


def test_a_missing_package_that_a_killed_rank_had_survived_is_no_mistake(read: Launched) -> None:
    read.log(1, "ModuleNotFoundError: No module named 'optional'\ngoes on without it\n")
    read.verdict(1, Verdict.CRASH, KILL, **KILLED)
    assert read.outcome().verdict is Verdict.CRASH


def test_a_process_that_never_knew_its_attempt_is_heard(read: Launched) -> None:
    read.verdict(0, Verdict.USER_ERROR, "the run directory is in use", attempt=None, log_dir=str(read.log_dir))
    assert read.outcome().verdict is Verdict.USER_ERROR


def test_that_another_job_is_refused_is_not_this_ones_mistake(read: Launched) -> None:
    read.verdict(0, Verdict.USER_ERROR, "the run directory is in use", attempt=None, log_dir="/logs of another job")
    read.attempt(3, read.run_dir / "logs of another job")
    read.verdict(0, Verdict.COMPLETE, "done")
    read.verdict(1, Verdict.COMPLETE, "done")
    assert read.outcome().verdict is Verdict.COMPLETE


def test_hosts_that_a_verdict_blames_are_sick(read: Launched) -> None:
    read.verdict(0, Verdict.SICK_NODE, "ranks differ", hosts=["n2"])
    assert list(read.outcome().sick) == ["n2"]


@pytest.mark.parametrize(
    ("text", "verdict", "sick"),
    [
        ("RuntimeError: CUDA error: uncorrectable NVLink error detected", Verdict.SICK_NODE, ["n2"]),
        ("RuntimeError: No CUDA GPUs: no CUDA-capable device is detected", Verdict.SICK_NODE, ["n2"]),
        ("Unable to determine the device handle for GPU: GPU is lost.", Verdict.SICK_NODE, ["n2"]),
        ("RuntimeError: CUDA error: out of memory", Verdict.CRASH, []),
        ("SyntaxError: invalid syntax", Verdict.USER_ERROR, []),
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


def test_a_missing_package_that_was_survived_is_not_the_cause(read: Launched) -> None:
    read.verdict(0, Verdict.CRASH, "NCCL communicator was aborted")
    read.log(0, "ModuleNotFoundError: No module named 'x'\nfalls back\nRuntimeError: NCCL communicator was aborted\n")
    assert read.outcome().verdict is Verdict.CRASH


def test_the_end_of_a_log_is_quoted(read: Launched) -> None:
    read.log(0, "\n".join(map(str, range(100))))
    assert quote(read.log_dir / "rank-00000.log")[-2:] == ["98", "99"]
    assert quote(read.log_dir / "nothing.log") == []
