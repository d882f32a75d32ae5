"""Asked to end, a run leaves in order, however far it is and whatever its ranks are doing."""

import os
import signal
import sys
import time

from scaletrain.checkpoint.verify import find_damage
from scaletrain.launch.verdicts import read_verdicts
from tests.integration.runs import NewRun, TinyRun
from tests.processes import eventually, living

FOREVER = ("--train.max_steps", 1_000_000, "--checkpoint.every_steps", 0)


def nothing_lives(run: TinyRun) -> None:
    eventually(lambda: not living(run.folder), 10, lambda: f"all processes ended: {living(run.folder)}")


def test_whoever_waits_for_its_peers_ends_when_it_is_told_and_when_its_job_ends(new_run: NewRun) -> None:
    """The first rank of two, whose peer never comes, sits in C code for half an hour."""
    terminated, interrupted, late = new_run("terminated"), new_run("interrupted"), new_run("late")
    ends = {"SCALETRAIN_JOB_END_TIME": str(time.time() + 25)}
    (one,) = terminated.start_ranks(2, only=0)
    (two,) = interrupted.start_ranks(2, only=0)
    (three,) = late.start_ranks(2, "--train.exit_by_s", 3, only=0, environment=ends)
    for run in (terminated, interrupted):
        eventually((run.run_dir / "config.yaml").exists, 60, "the run is described, and connects next")
    eventually(lambda: "libtorch_cpu" in maps_of(one.pid) and "libtorch_cpu" in maps_of(two.pid), 30, "torch is there")
    time.sleep(2)  # until the process group waits
    os.kill(one.pid, signal.SIGTERM)
    two.send_signal(signal.SIGINT)
    assert (one.wait(timeout=10), two.wait(timeout=10)) == (75, 130)
    three.wait(timeout=60)
    for run, verdict, words in (
        (terminated, "requeue", "SIGTERM before the first step"),
        (interrupted, "stopped", "SIGINT before the first step"),
        (late, "requeue", "the job is about to end (train.exit_by_s)"),
    ):
        nothing_lives(run)
        ended = read_verdicts(run.run_dir, 1)[0]
        assert ended["verdict"] == verdict and words in ended["reason"], ended
        assert run.events(1)[-1] == "exit" and "Traceback" not in run.output_of("rank-0").read_text()
    assert "ended by its keeper: rank 0: the job is about to end" in late.output_of("rank-0").read_text()
    # What can be given back is given back; the keeper leaves that to the next start, which sees that the owner died.
    assert not (terminated.run_dir / "lease.json").exists() and not (interrupted.run_dir / "lease.json").exists()
    assert ended["written_by"] == "keeper" and ended["manner"] == "signal 9 (SIGKILL)"


def maps_of(pid: int) -> str:
    with open(f"/proc/{pid}/maps") as maps:
        return maps.read()


def test_a_signal_while_libraries_are_imported(new_run: NewRun) -> None:
    run = new_run("importing")
    (process,) = run.start_ranks(1, *FOREVER, through=[sys.executable])
    eventually((run.run_dir / "config.yaml").exists, 60, "the run is described; torch is imported next")
    time.sleep(0.6)
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)  # as DeepSpeed's launcher adds it
    assert process.wait(timeout=15) == 130
    assert run.verdicts(1) == ["stopped"] and not (run.run_dir / "lease.json").exists()
    assert "Traceback" not in run.output_of("rank-0").read_text()
    nothing_lives(run)


def test_a_run_saves_when_asked_and_a_second_signal_ends_a_rank_in_a_collective(new_run: NewRun) -> None:
    run = new_run("asked")
    first, second = run.start_ranks(2, *FOREVER)
    run.wait_for_step(2, attempt=1)
    (run.run_dir / "save").touch()
    saved = eventually(lambda: list((run.run_dir / "checkpoints").glob("step_*/COMPLETE")), 30, "it is saved")
    run.wait_for_step(int(saved[0].parent.name.removeprefix("step_")) + 2, attempt=1)
    assert not (run.run_dir / "save").exists() and "save_request" in run.events(1)
    # The other rank stands still: this one waits for it in a collective, and cannot save.
    second.send_signal(signal.SIGSTOP)
    time.sleep(0.5)
    first.send_signal(signal.SIGTERM)
    time.sleep(1.5)
    assert first.poll() is None
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=5) == 75
    ended = read_verdicts(run.run_dir, 1)[0]
    assert ended["verdict"] == "requeue" and "SIGTERM came again" in ended["reason"]
    assert find_damage(saved[0].parent, "full") is None and not (run.run_dir / "lease.json").exists()
    second.kill()
    second.wait(timeout=10)
    nothing_lives(run)
