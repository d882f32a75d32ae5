"""What a job would do, without a cluster: the shipped scripts, and mistakes in made-up ones."""

from pathlib import Path

import pytest

from scaletrain.errors import ConfigError
from scaletrain.launch import preview
from scaletrain.launch.slurm.batch_options import count_tasks, read_command_line, read_script, time_limit_s

ROOT = Path(__file__).parents[2]
MODEL = ("--model.d_model", "32", "--model.n_layers", "1", "--model.n_heads", "2")
SMALL = [*MODEL, "--train.max_steps", "1000", "--train.compile", "false", "--train.max_seq_len", "32"]


def test_the_whole_page(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARE_NODES", "1")
    own = ["--step_s", "100"]
    words = [
        "-N",
        "4",
        "--time=12:00:00",
        str(ROOT / "slurm" / "pretrain.sh"),
        *SMALL,
        "--run_dir",
        str(tmp_path / "r"),
    ]
    assert preview.main([*own, *words]) == 0
    page = capsys.readouterr().out
    assert "--nodes=4".ljust(42) + "command line" in page
    assert "--gpus-per-node=8".ljust(42) + "line 9" in page
    assert "ranks 0 to 7" in page and "ranks 16 to 23" in page
    assert "in reserve node0004" in page
    assert "deepspeed.launcher.launch" in page and "--nodelist=node0001,node0002,node0003 " in page
    assert "24 ranks x" in page  # of the training's own plan
    # 1000 steps of 100 s, in starts of 12 h less 3 min to start and 3 min to save.
    assert "2: 27.8 h of training, 11.9 h in each start" in page


def test_a_mistake_of_the_training_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert preview.main([str(ROOT / "slurm" / "pretrain.sh"), "--optim.lrr", "1"]) == 2
    assert "did you mean optim.lr" in capsys.readouterr().err


@pytest.mark.parametrize("script", sorted((ROOT / "slurm").glob("*.sh")), ids=lambda path: path.name)
def test_the_lines_of_shipped_scripts_are_literal(script: Path) -> None:
    if script.name == "job.sh":
        return
    options = read_script(script.read_text())
    assert {"nodes", "gpus-per-node", "time", "job-name", "output", "no-kill"} <= options.keys()
    assert "partition" not in options  # a cluster's name is the user's to give


def test_a_variable_in_a_line_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"line 2.*expands no variable"):
        read_script("#!/bin/bash\n#SBATCH --nodes=$NODES\n")


def test_a_line_below_the_first_command_is_refused() -> None:
    with pytest.raises(ConfigError, match="below the first command"):
        read_script("#!/bin/bash\n#SBATCH -N 2\n\necho\n#SBATCH -t 5\n")


def test_lines_as_sbatch_reads_them() -> None:
    options = read_script('#!/bin/bash\n##SBATCH -p no\n#SBATCH -N2 -t 5 # why\n#SBATCH --comment "a b" --exclusive\n')
    assert {name: option.value for name, option in options.items()} == {
        "nodes": "2",
        "time": "5",
        "comment": "a b",
        "exclusive": "",
    }


def test_the_command_line_of_sbatch() -> None:
    line = read_command_line(["-N", "4", "--requeue", "-J=x", "script.sh", "--config", "a b"])
    assert {name: option.value for name, option in line.options.items()} == {
        "nodes": "4",
        "requeue": "",
        "job-name": "x",
    }
    assert (line.script, line.arguments) == ("script.sh", ("--config", "a b"))
    with pytest.raises(ConfigError, match="no script"):
        read_command_line(["-N", "4"])


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 1800), ("1:30", 90), ("2:00:00", 7200), ("1-12", 129600), ("1-0:30", 88200), ("UNLIMITED", None)],
)
def test_time_limits(text: str, seconds: float | None) -> None:
    assert time_limit_s(text) == seconds


def test_tasks_of_an_array() -> None:
    assert [count_tasks(text) for text in ("0-7", "1,3,5", "0-15:4%2", "5")] == [8, 3, 4, 1]
