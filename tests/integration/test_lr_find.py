"""tools/lr_find.py as a user meets it: alone and on two ranks, what it leaves, and what it refuses."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from scaletrain.monitors.jsonl_writer import read_metrics
from tests.integration.runs import ROOT, NewRun, TinyRun, python

TOOL = ROOT / "tools" / "lr_find.py"


@pytest.fixture(scope="module")
def alone(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TinyRun, str]:
    """A whole test by one process, and what it printed."""
    run = TinyRun(tmp_path_factory.mktemp("lr_find"), manifest)
    # What the configuration of a long run asks for is not asked of its test.
    asked = ["--eval.patience", 2, "--checkpoint.keep_best", "true", "--checkpoint.keep_every_steps", 4]
    result = python(TOOL, "--config", run.config, "--out", run.run_dir, "--num_steps", 60, "--max_lr=100", *asked)
    assert result.returncode == 0, result.stdout
    return run, result.stdout


def test_rates_grow_until_the_loss_diverges(alone: tuple[TinyRun, str]) -> None:
    run, _ = alone
    steps = read_metrics(run.run_dir / "metrics.jsonl")
    rates = [line["optim/lr"] for line in steps if "optim/lr" in line]
    assert rates == pytest.approx([1e-7 * 1e9 ** (index / 59) for index in range(len(rates))])
    found = json.loads((run.run_dir / "lr_find.json").read_text())
    assert len(rates) < 60 and found["diverged_at"] == rates[-1]
    losses = [step["loss"] for step in found["steps"]]
    assert losses == [line["train/loss"] for line in steps if "train/loss" in line][: len(losses)]
    # Any rate between these trains this model: at the lowest nothing moves, at the highest it diverges.
    assert 1e-4 < found["tenth_of_lowest"] < found["steepest_descent"] < found["diverged_at"] / 2


def test_it_prints_a_table_and_draws_a_chart(alone: tuple[TinyRun, str]) -> None:
    run, printed = alone
    found = json.loads((run.run_dir / "lr_find.json").read_text())
    assert f"Steepest descent at {found['steepest_descent']:.2e}" in printed
    assert f"diverged at a rate of {found['diverged_at']:.2e}" in printed
    assert "complete: the loss diverged" not in printed and "the loss diverged at a learning rate" in printed
    assert ET.parse(run.run_dir / "lr_find.svg").getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_it_leaves_no_weights_and_no_other_folder(alone: tuple[TinyRun, str]) -> None:
    run, _ = alone
    assert not list((run.run_dir / "checkpoints").iterdir())
    assert sorted(path.name for path in run.folder.iterdir()) == ["run", "tiny.yaml"]
    assert run.verdicts(1) == ["complete"]


def test_two_ranks_find_what_one_finds(alone: tuple[TinyRun, str], new_run: NewRun) -> None:
    single, run = alone[0], new_run("two")
    options = ["--out", run.run_dir, "--num_steps", 60, "--max_lr=100"]
    ranks = run.start_ranks(2, *options, script=TOOL)
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    printed = [run.output_of(f"rank-{rank}").read_text().count("Steepest descent at") for rank in range(2)]
    assert printed == [1, 0], "only one rank tells"
    one, two = (json.loads((each.run_dir / "lr_find.json").read_text()) for each in (single, run))
    until = [step for step in one["steps"] if step["lr"] < one["tenth_of_lowest"]]
    # Sums in another order: while nothing diverges both are the same training.
    assert [step["loss"] for step in two["steps"][: len(until)]] == pytest.approx(
        [step["loss"] for step in until], rel=1e-3
    )
    assert two["diverged_at"] is not None and run.verdicts(1) == ["complete", "complete"]


def test_a_plan_is_shown_and_nothing_is_written(new_run: NewRun) -> None:
    run = new_run("plan")
    # With the flag that DeepSpeed's launcher adds.
    result = python(TOOL, "--local_rank=0", "--config", run.config, "--out", run.run_dir, "--dry_run")
    assert result.returncode == 0 and "schedule: range_test" in result.stdout, result.stdout
    assert "none is saved" in result.stdout and not run.run_dir.exists()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ([], "--out needs a value"),
        (["--out"], "--out needs a value"),
        (["--out", "x", "--optim.lr", "3"], "--optim.lr is what this tool sets"),
        (["--out", "x", "--run_dir", "y"], "--run_dir is what this tool sets"),
        (["--out", "x", "--min_lr", "1", "--max_lr", "0.1"], "--min_lr 1 is not below --max_lr 0.1"),
        (["--out", "x", "--max_lr", "fast"], "--max_lr fast"),
        (["--out", "x", "--num_steps", "3"], "--num_steps 3"),
        (["--out", "x", "--optim.warmup", "3"], "optim.warmup"),
        (["--out", "x", "--optim.warmup_steps", "3"], "--optim.warmup_steps is what this tool sets"),
    ],
)
def test_mistakes_are_told(flags: list[str], told: str, tmp_path: Path) -> None:
    result = python(TOOL, *flags, folder=tmp_path)
    assert result.returncode == 2 and told in result.stdout, result.stdout
    assert not list(tmp_path.iterdir())


def test_its_help_names_its_flags_and_where_the_others_stand() -> None:
    result = python(TOOL, "--help")
    assert result.returncode == 0
    assert all(name in result.stdout for name in ("out:", "min_lr:", "max_lr:", "num_steps:", "scaletrain/train.py"))
