"""tools/sweep.py as a user meets it: several runs, a table, and the same command after whatever stopped it."""

import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from scaletrain.monitors.jsonl_writer import read_metrics
from tests.integration.runs import ENVIRONMENT, ROOT, NewRun, TinyRun, python
from tests.processes import eventually

TOOL = ROOT / "tools" / "sweep.py"


def sweep(run: TinyRun, *flags: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(run, *flags), cwd=run.folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=140
    )


def command(run: TinyRun, *flags: object) -> list[str]:
    return [sys.executable, str(TOOL), "--file", "rates.txt", "--config", str(run.config), *map(str, flags)]


def write_lines(run: TinyRun, *lines: str) -> None:
    (run.folder / "rates.txt").write_text("\n".join(lines) + "\n")


def starts(run: TinyRun, number: int) -> int:
    return len(list((run.folder / "runs" / "rates" / str(number) / "exit").glob("[0-9]*")))


def test_runs_are_trained_side_by_side_and_one_that_fails_holds_none_up(new_run: NewRun) -> None:
    run = new_run("sweep")
    write_lines(run, "--optim.lr 1e-4", "--data.manifest nowhere.json", "# a comment", "--optim.lr 1e-2")
    result = sweep(run, "--jobs", 2)
    folder = run.folder / "runs" / "rates"
    assert result.returncode == 1, result.stdout + result.stderr
    assert "not complete: 1; the same command goes on" in result.stdout
    assert "nowhere.json" in (folder / "1" / "logs" / "output.txt").read_text()
    table = (folder / "comparison.md").read_text()
    rows = {row.split("|")[1].strip(): row for row in table.splitlines() if row.startswith("| ")}
    assert "complete" in rows["0"] and "complete" in rows["2"] and "user_error" in rows["1"]
    assert "0.0001" in rows["0"] and "0.01" in rows["2"]
    assert all((folder / number / "tb").is_dir() for number in "02")

    write_lines(run, "--optim.lr 1e-4", f"--data.manifest {run.manifest}", "--optim.lr 1e-2")
    again = sweep(run)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "2 of them complete" in again.stdout
    assert [starts(run, number) for number in (0, 2)] == [1, 1], "what was complete was not started again"

    write_lines(run, "--optim.lr 5e-4", f"--data.manifest {run.manifest}", "--optim.lr 1e-2")
    changed = sweep(run)
    assert changed.returncode == 2 and "optim.lr 0.0001 there and 0.0005 here" in changed.stderr


def test_ctrl_c_saves_what_is_under_way_and_the_same_command_goes_on(new_run: NewRun) -> None:
    run = new_run("stopped")
    write_lines(run, "--optim.lr 1e-3", "--optim.lr 2e-3 --train.max_steps 4")
    process = subprocess.Popen(
        command(run, "--train.max_steps", 3000), cwd=run.folder, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    run.started.append(process)
    metrics = run.folder / "runs" / "rates" / "0" / "metrics.jsonl"
    eventually(lambda: metrics.exists() and len(read_metrics(metrics)) > 3, 60, "a step of the first run")
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "0: stopped" in printed, printed
    assert "not complete: 0, 1" in printed and starts(run, 1) == 0, "no other run is begun"
    step = read_metrics(metrics)[-1]["step"]
    result = sweep(run, "--train.max_steps", step + 2)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = read_metrics(metrics)
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, step + 3))
    assert {line["attempt"] for line in lines} == {1, 2}, "it went on from where it was saved"


def test_runs_share_the_gpus_that_a_training_would_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOL.parent))
    usable = runpy.run_path(str(TOOL))["usable_gpus"]
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert usable(["0", "1"]) == ["0", "1"] and usable([]) == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert usable(["0", "1"]) == ["1"]
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert usable(["0", "1"]) == []


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ([], "--file needs a value"),
        (["--file", "none.txt"], "none.txt"),
        (["--file", "one.txt", "--jobs", "0"], "--jobs 0"),
        (["--file", "one.txt", "--run_dir", "x"], "--run_dir is no flag of a sweep"),
        (["--file", "one.txt", "--optim.rl", "1"], "optim.rl"),
    ],
)
def test_mistakes_are_told_and_nothing_is_written(flags: list[str], told: str, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("--optim.lr 1e-3\n")
    result = python(TOOL, *flags, folder=tmp_path)
    assert result.returncode == 2 and told in result.stdout, result.stdout
    assert os.listdir(tmp_path) == ["one.txt"]
