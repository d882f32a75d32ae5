"""tools/report.py on a run that was killed and went on: where its time went, as its user sees it."""

import json
import os
import re
import signal

import pytest

from scaletrain.launch.events import read_events
from scaletrain.monitors.goodput import Spent
from scaletrain.monitors.goodput_summary import summarize
from scaletrain.monitors.jsonl_writer import read_records
from scaletrain.monitors.run_records import read_run
from tests.integration.runs import ROOT, NewRun, TinyRun, python

REPORT = ROOT / "tools" / "report.py"
SAVES_ONCE = ("--checkpoint.every_steps", 5, "--eval.every_steps", 2)


def test_a_run_that_was_killed_and_went_on(new_run: NewRun) -> None:
    run = new_run("killed")
    (process,) = run.start_ranks(1, *SAVES_ONCE, "--train.max_steps", 1_000_000)
    run.wait_for_step(8, attempt=1)
    under_way = read_run(run.run_dir)
    assert summarize(under_way).verdict == "running"
    os.kill(process.pid, signal.SIGKILL)
    process.wait(timeout=10)
    trained = max(line["step"] for line in read_records(run.run_dir / "metrics.jsonl"))
    died_s = summarize(read_run(run.run_dir)).account.attempts[0].end_us / 1e6
    last = trained + 2
    assert run.start_ranks(1, *SAVES_ONCE, "--train.max_steps", last)[0].wait(timeout=90) == 0

    page = run.folder / "report.html"
    result = python(REPORT, "--run_dir", run.run_dir, "--html", page)
    assert result.returncode == 0, result.stdout
    summary = summarize(read_run(run.run_dir))
    told = summary.account
    first, second = told.attempts
    resume = next(event for event in read_events(run.run_dir / "events.jsonl") if event["event"] == "resume")
    launched_s, claimed_s = resume["launched_s"], json.loads((run.run_dir / "exit/2/launch.json").read_text())["time_s"]

    assert (first.verdict, second.verdict) == ("crash", "complete")
    assert "signal 9" in first.reason
    saved = resume["step"]
    assert saved >= 5 and saved % 5 == 0
    assert [step.step for step in first.steps if step.lost] == list(range(saved + 1, trained + 1))
    assert [step.step for step in told.steps if not step.lost] == list(range(1, last + 1))
    # The shares are the wall time, and each is about what an onlooker would have measured.
    shares = told.shares_us
    assert sum(shares.values()) == told.wall_us
    # The start of a process is known to 10 ms, as is the end of the one before.
    assert died_s - 0.02 < launched_s < claimed_s < second.steps[0].time_s
    assert second.begin_us / 1e6 == pytest.approx(launched_s, abs=0.03)
    assert shares[Spent.DOWN] / 1e6 == pytest.approx(launched_s - first.end_us / 1e6, abs=0.03)
    began_s = (first.begin_us / 1e6, second.begin_us / 1e6)
    waited_s = [attempt.steps[0].time_s - begin_s for attempt, begin_s in zip(told.attempts, began_s, strict=True)]
    assert 0.5 * sum(waited_s) < shares[Spent.START_UP] / 1e6 < sum(waited_s)
    for spent in (Spent.PRODUCTIVE, Spent.LOST, Spent.CHECKPOINT, Spent.EVALUATION):
        assert shares[spent] > 0, spent
    assert shares[Spent.OTHER] < 0.5 * told.wall_us
    assert (summary.interruptions, summary.failures, summary.lost_steps) == (1, 1, trained - saved)

    assert re.search(rf"^lost steps: {trained - saved} of {len(told.steps)}", result.stdout, re.MULTILINE)
    assert f"goodput {told.goodput:.1%}" in result.stdout and "signal 9" in result.stdout
    assert page.read_text().startswith("<!doctype html>") and "<svg" in page.read_text()


def test_a_complete_run_needs_no_restart_to_be_reported(finished: TinyRun) -> None:
    result = python(REPORT, "--run_dir", finished.run_dir)
    assert result.returncode == 0
    assert "run: complete, 1 attempt" in result.stdout
    assert "no failure yet: only a bound is known" in result.stdout


def test_a_mistake_is_told_without_a_traceback(finished: TinyRun) -> None:
    for flags, said in (
        (("--run_dir", finished.folder / "nowhere"), "holds no run"),
        (("--run_dir", finished.run_dir, "--html"), "--html needs a value"),
        (("--run_dir", finished.run_dir, "--html", finished.folder / "no" / "x.html"), "cannot be written"),
    ):
        result = python(REPORT, *flags)
        assert (result.returncode, "Traceback" in result.stdout) == (2, False)
        assert said in result.stdout
