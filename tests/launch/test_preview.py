"""What a job would do, without a cluster: the shipped scripts, and mistakes in them."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from scaletrain.launch import preview

ROOT = Path(__file__).parents[2]
PRETRAIN = str(ROOT / "slurm" / "pretrain.sh")
MODEL = ("--model.d_model", "32", "--model.n_layers", "1", "--model.n_heads", "2")
SMALL = [*MODEL, "--train.max_steps", "1000", "--train.compile", "false", "--train.max_seq_len", "32"]


def line(page: str, start: str) -> str:
    return next(one for one in page.splitlines() if one.startswith(start))


def page_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    code = preview.main(words)
    told = capsys.readouterr()
    assert code == 0, told.err
    return told.out


def test_the_whole_page(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARE_NODES", "1")
    monkeypatch.setenv("SBATCH_PARTITION", "gpu")
    words = ["-N", "4", "--time=12:00:00", PRETRAIN, *SMALL, "--run_dir", str(tmp_path / "r")]
    page = page_of(capsys, "--step_s", "100", *words)
    assert "--nodes=4".ljust(42) + "command line" in page
    assert "--gpus-per-node=8".ljust(42) + "line 9" in page
    assert "--partition=gpu".ljust(42) + "SBATCH_PARTITION" in page
    assert "SPARE_NODES=1".ljust(42) + "0 without it" in page
    assert "CRASH_LIMIT" not in page  # as by default
    assert "ranks 0 to 7" in page and "ranks 8 to 15" in page and "ranks 16 to 23" in page
    assert "in reserve node0004" in page
    assert "--nodelist=node0001,node0002,node0003 " in line(page, "step")
    assert page.count("SCALETRAIN_JOB_END_TIME=START_PLUS_43200_S") == 3
    step, run_dir = shlex.split(line(page, "step")), tmp_path / "r"
    assert step[-3:] == ["-m", "scaletrain.launch.slurm.node", str(run_dir / "logs" / "launch-0001" / "plan.json")]
    launchers = [shlex.split(one) for one in page.splitlines() if "deepspeed.launcher.launch" in one]
    node_ranks = [word for words in launchers for word in words if word.startswith("--node_rank")]
    assert node_ranks == ["--node_rank=0", "--node_rank=1", "--node_rank=2"]
    script = launchers[1].index(str(ROOT / "scaletrain" / "train.py"))
    assert launchers[1][script + 1 :] == [*SMALL, "--run_dir", str(run_dir)]
    assert "24 ranks x" in page  # of the training's own plan
    assert "max_steps:" not in page  # its configuration is left out
    # 1000 steps of 100 s, in starts of 12 h less 3 min to start and 3 min to save.
    assert "2: 27.8 h of training, 11.9 h in each start" in page
    assert "1,000 steps of 100 s, as given by --step_s" in page
    assert not (tmp_path / "r").exists()


def test_a_run_that_exists_is_measured(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text(json.dumps({"event": "save", "step": 400}) + "\n")
    (tmp_path / "job.jsonl").write_text(json.dumps({"event": "launch", "launch": 1}) + "\n")
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 400, "perf/step_time_s": 60.0}) + "\n")
    page = page_of(capsys, "-t", "2:00:00", PRETRAIN, *SMALL, "--run_dir", str(tmp_path))
    assert "5: 10.0 h of training, 1.9 h in each start" in page
    assert "600 steps (step 400 is saved) of 60 s, the median" in page
    assert "launch-0002" in page


def test_the_container_is_shown_and_not_needed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONTAINER", "train.sif")
    monkeypatch.setenv("PREFLIGHT", "nodes")
    page = page_of(capsys, "--gpu", "H100", PRETRAIN, *SMALL, "--run_dir", str(tmp_path / "r"))
    assert " apptainer exec --nv " in line(page, "step")
    assert "not the connections" in line(page, "checks")
    assert line(page, "plan") == "plan       (for H100; made outside of the container)"
    assert "1,000 steps as planned, at 40% of" in page


def test_a_sweep_shows_one_of_its_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rates.txt").write_text("--optim.lr 3e-4\n--optim.lr 6e-4\n")
    page = page_of(capsys, "-a", "1", str(ROOT / "slurm" / "sweep.sh"), "rates.txt", *SMALL)
    assert "a job array of 1 tasks; task 1 is shown" in page
    assert line(page, "run ").split() == ["run", str(tmp_path / "runs" / "rates" / "1")]
    assert line(page, "batch").endswith("--optim.lr 6e-4 --run_dir runs/rates/1")


def test_a_check_of_nodes_trains_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    page = page_of(capsys, "-N", "3", str(ROOT / "slurm" / "healthcheck.sh"))
    assert "each node, then the all-reduce" in page
    assert "training   none" in page
    assert "plan" not in page


MISTAKES = [
    ([PRETRAIN, "--optim.lrr", "1"], "did you mean optim.lr"),
    (
        [PRETRAIN, *SMALL, "--data.corpus", "none", "--data.manifest", "/nowhere/manifest.json"],
        "/nowhere/manifest.json",
    ),
    (["no.sh"], "no.sh: No such file"),
    (["-N", "4"], "no script is given"),
    (["-t", "soon", PRETRAIN], "--time soon is no time"),
    (["--step_s", "0", PRETRAIN], "--step_s 0: expected seconds"),
    (["--gpu"], "--gpu needs a value"),
    ([str(ROOT / "slurm" / "sweep.sh"), "rates.txt"], "a sweep is a job array"),
]


@pytest.mark.parametrize(("words", "told"), MISTAKES)
def test_a_mistake_ends_it_with_a_message(capsys: pytest.CaptureFixture[str], words: list[str], told: str) -> None:
    assert preview.main(words) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ") and told in printed.err
    assert printed.out == ""


def test_settings_are_those_that_reach_the_job(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BACKOFF_S", "5")
    page = page_of(capsys, "--export=SPARE_NODES=1", str(ROOT / "slurm" / "healthcheck.sh"))
    assert "SPARE_NODES=1" in page and "BACKOFF_S" not in page


def test_too_many_spares(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARE_NODES", "2")
    assert preview.main([PRETRAIN]) == 2
    assert "SPARE_NODES=2 of 2 nodes leaves none" in capsys.readouterr().err


def test_the_command_that_users_type(tmp_path: Path) -> None:
    script = tmp_path / "mine.sh"
    script.write_text("#!/bin/bash\n#SBATCH --nodes=$N\n")
    done = subprocess.run(
        [sys.executable, "-m", "scaletrain.launch.preview", str(script)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: {script}: line 2: #SBATCH --nodes=$N: sbatch expands no variable here; write the value itself\n"
    )
