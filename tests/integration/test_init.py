"""A run that begins with another run's weights, through the command itself."""

import shutil
from pathlib import Path

import pytest

from scaletrain.checkpoint.weights import load_weights
from scaletrain.launch.events import read_events
from tests.integration.runs import NewRun, TinyRun


def test_it_begins_with_the_weights_and_nothing_else(finished: TinyRun, new_run: NewRun) -> None:
    """On two ranks and another ZeRO stage; the first loss is that of a trained model, and step 1 warms up anew."""
    run = new_run("tuned")
    flags = ("--init", finished.run_dir, "--train.max_steps", 1, "--optim.lr", "1e-12", "--optim.weight_decay", 0)
    ranks = run.start_ranks(2, *flags, "--deepspeed", "configs/ds/zero3.json", "--eval.prompts", "[]")
    assert [rank.wait(timeout=90) for rank in ranks] == [0, 0], run.output_of("rank-0").read_text()
    (event,) = [one for one in read_events(run.run_dir / "events.jsonl") if one["event"] == "init"]
    assert (event["source_step"], Path(event["folder"]).name) == (12, "step_00000012")
    theirs, ours = load_weights(finished.run_dir / "checkpoints"), load_weights(run.run_dir / "checkpoints")
    # Adam moves a weight by its rate at most.
    assert max(float((theirs[name] - ours[name]).abs().max()) for name in theirs) < 2e-12
    assert run.curve("optim/steps") == [(1, 1)]


def test_a_restart_goes_on_with_its_own(finished: TinyRun, new_run: NewRun, tmp_path: Path) -> None:
    run = new_run("again")
    source = tmp_path / "source"
    shutil.copytree(finished.run_dir, source)
    flags = ("--init", f"{source}@12", "--train.max_steps")
    assert run.alone(*flags, 4).returncode == 0
    shutil.rmtree(source)
    result = run.alone(*flags, 8)
    assert result.returncode == 0, result.stdout
    events = [one["event"] for one in read_events(run.run_dir / "events.jsonl")]
    assert events.count("init") == 1
    assert "resume" in events


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--init", "nowhere"], "nowhere is no folder"),
        (["--init", "{source}@7"], "step 7 has no checkpoint"),
        (["--init", "{source}@last"], "last is no step"),
        (["--init", "{source}", "--model.d_model", "64"], "model.d_model: 32 there, 64 here"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_starts(
    finished: TinyRun, new_run: NewRun, flags: list[str], words: str
) -> None:
    run = new_run("refused")
    given = [flag.format(source=finished.run_dir) for flag in flags]
    for more in (["--dry_run"], []):
        result = run.alone(*given, *more)
        assert result.returncode == 2, result.stdout
        assert words in result.stdout
        assert "Traceback" not in result.stdout
