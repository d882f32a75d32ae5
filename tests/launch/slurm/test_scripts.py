"""What reaches a training from the shipped scripts, compared with the scripts themselves."""

import os
import subprocess
from pathlib import Path

import pytest

from scaletrain.errors import ConfigError
from scaletrain.launch.slurm import resolve
from scaletrain.launch.slurm.scripts import supervises, training_arguments

ROOT = Path(__file__).parents[3]
# Stands for python3 in a batch script: tells what it is given.
TELLS = '#!/bin/sh\nprintf "%s\\n" "$@"\n'


def run_script(
    name: str, arguments: list[str], folder: Path, task: int | None, known_as: str = ""
) -> "subprocess.CompletedProcess[str]":
    """Runs a batch script up to the supervisor, with commands that only tell what they are given."""
    commands = folder / "bin"
    commands.mkdir(exist_ok=True)
    for command, text in (
        ("python3", TELLS),
        ("scontrol", f"#!/bin/sh\necho '   Command={ROOT}/slurm/{known_as or name} with arguments.sh x'\n"),
    ):
        (commands / command).write_text(text)
        (commands / command).chmod(0o755)
    (folder / "venv" / "bin").mkdir(parents=True, exist_ok=True)
    (folder / "venv" / "bin" / "activate").touch()
    environment = {"PATH": f"{commands}:{os.environ['PATH']}", "SLURM_JOB_ID": "1", "VENV": str(folder / "venv")}
    if task is not None:
        environment["SLURM_ARRAY_TASK_ID"] = str(task)
    return subprocess.run(
        ["bash", str(ROOT / "slurm" / name), *arguments],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=30,
    )


CASES = [
    ("pretrain.sh", ["--config", "a b.yaml"], None),
    ("finetune.sh", ["--init", "runs/a"], None),
    ("finetune.sh", ["--init=runs/a", "--seed", "3"], None),
    ("finetune.sh", ["--config", "a.yaml"], None),
    ("sweep.sh", ["rates.txt", "--config", "a.yaml"], 0),
    ("sweep.sh", ["rates.txt"], 1),
    ("sweep.sh", ["rates.txt"], 2),
    ("sweep.sh", ["rates.txt"], None),
    ("sweep.sh", ["nothing.txt"], 0),
    ("sweep.sh", [], 0),
]


@pytest.mark.parametrize(("script", "arguments", "task"), CASES)
def test_arguments_as_the_script_gives_them(
    script: str, arguments: list[str], task: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rates.txt").write_text("# rates\n--optim.lr 3e-4\n\n  # more\n--optim.lr '1e-3' --seed 2\n")
    real = run_script(script, arguments, tmp_path, task)
    try:
        ours = training_arguments(script, arguments, task)
    except ConfigError as error:
        assert real.returncode == 2, real
        assert str(error)[:8] in real.stderr  # of the same matter
        return
    assert real.returncode == 0, real.stderr
    assert real.stdout.splitlines() == ["-m", "scaletrain.launch.slurm.supervise", *ours]


def test_which_scripts_train() -> None:
    told = {path.name: supervises(path.read_text()) for path in (ROOT / "slurm").glob("*.sh") if path.name != "job.sh"}
    assert told == {"pretrain.sh": True, "finetune.sh": True, "sweep.sh": True, "healthcheck.sh": False}


def test_outside_of_a_job_a_script_says_so_at_once(tmp_path: Path) -> None:
    for script in sorted((ROOT / "slurm").glob("[!j]*.sh")):
        done = subprocess.run(["bash", str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=5)
        assert done.returncode != 0
        assert "give this script to sbatch" in done.stderr


def test_a_copy_under_another_name_finds_its_place(tmp_path: Path) -> None:
    done = run_script("pretrain.sh", ["--config", "other.sh x"], tmp_path, None, known_as="my pretraining.sh")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[2:] == ["--config", "other.sh x"]


def test_a_copy_elsewhere_is_told_where_it_belongs(tmp_path: Path) -> None:
    done = run_script("pretrain.sh", [], tmp_path, None, known_as="../pretrain.sh")
    assert done.returncode == 2
    assert "in the folder slurm of the checkout" in done.stderr


@pytest.mark.parametrize("flag", ["--help", "--dry_run"])
def test_what_trains_nothing_is_no_job(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert resolve.main([flag]) == 2
    assert "scaletrain.launch.preview" in capsys.readouterr().err
