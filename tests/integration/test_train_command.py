"""One command starts a run or goes on with it, however it was ended before."""

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from scaletrain.launch.verdicts import Verdict
from tests.integration.runs import NewRun, TinyRun
from tests.processes import eventually, living

FOREVER = ("--train.max_steps", 1_000_000)
WITH_DROPOUT = ("--model.dropout", 0.1)
MEASURED = ("train/loss", "train/grad_norm", "optim/lr", "eval/loss", "data/epoch")


def nothing_lives(run: TinyRun) -> bool:
    return not living(run.folder)


def test_a_run_cut_by_a_signal_and_by_kill_goes_on_bit_for_bit(new_run: NewRun) -> None:
    cut = new_run("cut")
    # A scheduler's SIGTERM to one rank ends all of them at the same step.
    ranks = cut.start_ranks(2, *WITH_DROPOUT, *FOREVER)
    cut.wait_for_step(3, attempt=1)
    os.kill(cut.pid_of(1, rank=1), signal.SIGTERM)
    assert [rank.wait(timeout=60) for rank in ranks] == [75, 75]
    assert cut.verdicts(1) == [Verdict.REQUEUE, Verdict.REQUEUE]
    first_cut = cut.curve()[-1][0]
    assert cut.events(1)[0] == "start" and cut.events(1)[-1] == "exit" and "signal" in cut.events(1)
    assert (cut.run_dir / "checkpoints" / f"step_{first_cut:08d}" / "COMPLETE").exists()
    eventually(lambda: nothing_lives(cut), 10, lambda: f"all processes ended: {living(cut.folder)}")

    # The launcher itself is killed: it can tell nobody, and still the ranks save and end.
    launcher = cut.start_deepspeed(*WITH_DROPOUT, *FOREVER)
    cut.wait_for_step(first_cut + 3, attempt=2)
    pids = [cut.pid_of(2, rank) for rank in (0, 1)]
    os.kill(launcher.pid, signal.SIGKILL)
    launcher.wait(timeout=10)
    eventually(lambda: nothing_lives(cut), 45, "all processes ended")
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert cut.verdicts(2) == [Verdict.REQUEUE, Verdict.REQUEUE]
    assert cut.events(2)[0] == "resume"
    second_cut = cut.curve()[-1][0]
    assert second_cut >= first_cut + 3

    to_the_end = (*WITH_DROPOUT, "--train.max_steps", second_cut + 2)
    assert [rank.wait(timeout=90) for rank in cut.start_ranks(2, *to_the_end)] == [0, 0]
    assert cut.verdicts(3) == [Verdict.COMPLETE, Verdict.COMPLETE]
    assert not (cut.run_dir / "lease.json").exists()
    reference = new_run("uncut")
    assert [rank.wait(timeout=90) for rank in reference.start_ranks(2, *to_the_end)] == [0, 0]
    uncut = reference.curve(*MEASURED)
    assert [step for step, *_ in uncut] == list(range(1, second_cut + 3))
    assert cut.curve(*MEASURED) == uncut


def test_another_stage_and_another_number_of_ranks_go_on(new_run: NewRun, finished: TinyRun) -> None:
    run = new_run("moved")
    shutil.copytree(finished.run_dir, run.run_dir)
    newest = run.run_dir / "checkpoints" / "step_00000012" / "mp_rank_00_model_states.pt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)

    ranks = run.start_ranks(2, "--deepspeed", "configs/ds/zero3.json", "--train.micro_batch_size", 1)
    assert [rank.wait(timeout=60) for rank in ranks] == [0, 0]
    told = run.output_of("rank-0").read_text()
    assert "checkpoints/step_00000012: mp_rank_00_model_states.pt has another checksum" in told
    assert "goes on at step 8" in told
    assert run.events(2).count("change") == 2 and "resume" in run.events(2)
    curve, reference = run.curve("attempt", "train/loss"), finished.curve("attempt", "train/loss")
    assert [attempt for _, attempt, _ in curve] == [1] * 8 + [2] * 4
    assert [loss for *_, loss in curve] == pytest.approx([loss for *_, loss in reference], abs=1e-5)

    again = run.alone(environment={"SLURM_JOB_END_TIME": "1000"})  # a shell has kept it from another job
    assert "SLURM_JOB_END_TIME=1000 is over" in again.stdout
    assert again.returncode == 0 and "the run is complete: it is at step 12 of 12" in again.stdout
    assert run.verdicts(3) == [Verdict.COMPLETE] and run.curve("attempt", "train/loss") == curve


def test_a_stop_file_ends_a_run_and_is_taken_away(new_run: NewRun) -> None:
    run = new_run("stopped")
    (process,) = run.start_ranks(1, *FOREVER, environment={"SCALETRAIN_JOB_END_TIME": str(time.time() + 3600)})
    run.wait_for_step(2, attempt=1)
    assert "saves and ends before" in run.output_of("rank-0").read_text()
    assert (run.run_dir / "exit" / "1" / "trained").exists(), "the keepers leave the ranks alone"
    (run.run_dir / "stop").touch()
    assert process.wait(timeout=30) == 130
    assert run.verdicts(1) == [Verdict.STOPPED] and not (run.run_dir / "stop").exists()
    last = run.curve()[-1][0]
    assert (run.run_dir / "checkpoints" / f"step_{last:08d}" / "COMPLETE").exists()
    assert "Traceback" not in run.output_of("rank-0").read_text()
    eventually(lambda: nothing_lives(run), 10, "all processes ended")


def test_nothing_is_compiled_before_the_first_step(finished: TinyRun) -> None:
    # It would take a minute on a fresh machine, and a compiler.
    assert not (finished.folder / "extensions").exists()
