"""The gap between the losses, and a run that ends where it no longer improves, however often it is cut."""

from pathlib import Path

import pytest

from scaletrain.config.derive import check
from scaletrain.config.load import load_config
from scaletrain.errors import ConfigError
from tests.training.data_runs import DataRun
from tests.training.mishaps import Mishap

# Steps that grow until the loss rises.
WORSENS = {
    "optim.lr": 5,
    "optim.warmup_steps": 60,
    "optim.ema_decay": 0.1,
    "optim.l1": 1e-4,
    "stability.spike_zscore": 0,
    "eval.every_steps": 2,
    "eval.patience": 2,
    "checkpoint.keep_last": 1,
    "checkpoint.every_steps": 3,
}


def evaluated(run: DataRun) -> list[tuple[int, float, float]]:
    """Step, validation loss and gap of each evaluation."""
    return [(row["step"], row["eval/loss"], row["eval/gap"]) for row in run.rows if "eval/loss" in row]


def checkpoints(run: DataRun) -> list[int]:
    return sorted(int(folder.name.removeprefix("step_")) for folder in (run.run_dir / "checkpoints").glob("step_*"))


@pytest.fixture(scope="module")
def stopped(corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> DataRun:
    run = DataRun(tmp_path_factory.mktemp("stopped"), corpora, WORSENS)
    run.complete(2)
    return run


def test_it_ends_after_the_evaluations_that_were_no_better_and_keeps_the_best(stopped: DataRun) -> None:
    losses = {step: loss for step, loss, _ in evaluated(stopped)}
    best = min(losses, key=lambda step: losses[step])
    last = stopped.rows[-1]["step"]
    assert last == best + 2 * WORSENS["eval.patience"] < 12
    (event,) = stopped.events("early_stop")
    assert (event["step"], event["best_step"], event["best_loss"]) == (last, best, losses[best])
    assert checkpoints(stopped) == [best, last]


def test_the_gap_is_that_to_the_steps_since_the_evaluation_before(stopped: DataRun) -> None:
    first = 0
    assert len(evaluated(stopped)) >= 3
    for step, loss, gap in evaluated(stopped):
        rows = [row for row in stopped.rows if first < row["step"] <= step]
        targets = sum(row["train/target_tokens"] for row in rows)
        mean = sum(row["train/loss"] * row["train/target_tokens"] for row in rows) / targets
        assert gap == pytest.approx(loss - mean, abs=1e-9)
        first = step


def test_a_cut_run_ends_at_the_same_step_with_the_same_numbers(stopped: DataRun, corpora: Path, tmp_path: Path) -> None:
    run = DataRun(tmp_path, corpora, WORSENS)
    assert run.start(2, mishap=Mishap(kill_at=2)) == ("requeue", "requeue")
    cut_behind_an_evaluation = Mishap(kill_at=stopped.rows[-1]["step"] - 2)
    assert run.start(2, mishap=cut_behind_an_evaluation) == ("requeue", "requeue")
    run.complete(2)
    assert evaluated(run) == evaluated(stopped)
    assert [row["train/loss"] for row in run.rows] == [row["train/loss"] for row in stopped.rows]
    assert checkpoints(run) == checkpoints(stopped)


def test_a_run_that_is_over_stays_so_until_it_is_given_more_patience(
    stopped: DataRun, corpora: Path, tmp_path: Path
) -> None:
    run = DataRun(tmp_path, corpora, WORSENS)
    run.complete(2)
    last = run.rows[-1]["step"]
    run.complete(2)
    assert run.rows[-1]["step"] == last and len(run.events("early_stop")) == 1
    run.complete(2, eval__patience=9)
    assert run.rows[-1]["step"] == 12


def test_patience_needs_evaluations() -> None:
    with pytest.raises(ConfigError, match=r"eval\.patience = 3 counts evaluations, but eval\.every_steps = 0"):
        check(load_config(None, {"eval.patience": "3", "eval.every_steps": "0"}))
