"""Fine-tuning is the same command as training, with weights of another run, or of a folder from elsewhere."""

from pathlib import Path

import pytest

from scaletrain.config.load import load_config
from scaletrain.launch.events import read_events
from scaletrain.monitors.jsonl_writer import read_metrics
from tests.integration.runs import ROOT, NewRun, TinyRun, python

FINETUNE = ROOT / "scaletrain" / "finetune.py"
CONVERT = ROOT / "tools" / "convert.py"
SHORT = ("--train.max_steps", 2, "--optim.warmup_steps", 0, "--optim.lr", 1e-4)


@pytest.fixture
def tuning(new_run: NewRun) -> TinyRun:
    """A run whose configuration says nothing of its model."""
    run = new_run("tuning")
    lines = [line for line in run.config.read_text().splitlines() if not line.startswith("model:")]
    run.config.write_text("\n".join(lines) + "\n")
    return run


def test_it_demands_what_to_begin_with(tuning: TinyRun) -> None:
    done = python(FINETUNE, "--config", tuning.config, "--dry_run")
    assert done.returncode == 2
    assert "--init is missing: name the run" in done.stdout and "Traceback" not in done.stdout


def test_a_run_and_what_it_was_converted_to_and_back_begin_alike(finished: TinyRun, tuning: TinyRun) -> None:
    hf, start = tuning.folder / "hf", tuning.folder / "start"
    for verb in (("to_hf", "--source", finished.run_dir, "--out", hf), ("from_hf", "--source", hf, "--out", start)):
        done = python(CONVERT, *verb, "--verify", "false")
        assert done.returncode == 0, done.stdout
    losses = []
    for name, init in (("of a run", finished.run_dir), ("of a start", start)):
        run_dir = tuning.folder / name
        done = python(FINETUNE, "--config", tuning.config, "--run_dir", run_dir, "--init", init, *SHORT)
        assert done.returncode == 0, done.stdout
        assert "begins with the weights of" in done.stdout and "2 steps" in done.stdout
        tuned = load_config(run_dir / "config.yaml", {}).model
        assert (tuned.d_model, tuned.n_layers, tuned.vocab_size) == (32, 2, 320)
        assert [event["event"] for event in read_events(run_dir / "events.jsonl")].count("init") == 1
        losses.append(first_loss(run_dir))
    trained = finished.curve("train/loss")
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[0] < trained[0][1] - 0.5, "it begins where the other run has come to"


def first_loss(run_dir: Path) -> float:
    return float(next(line["train/loss"] for line in read_metrics(run_dir / "metrics.jsonl") if "train/loss" in line))
