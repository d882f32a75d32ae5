"""Runs side by side: what differs, which is best, and at which step that can be told."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from scaletrain.errors import ConfigError
from scaletrain.monitors.comparison import SORTS, compare
from scaletrain.monitors.comparison_text import comparison_notes, comparison_table, markdown_lines, text_lines

T0 = 1_790_000_000.0


def a_run(folder: Path, steps: int, loss: float, verdict: str = "complete", **settings: Any) -> Path:
    """A run whose loss falls to a value in its last step, and that evaluates every twenty steps."""
    (folder / "exit/1").mkdir(parents=True)
    config = {"run_dir": str(folder), "train": {"max_steps": 100, "max_seq_len": 8}, "optim": settings}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    lines = []
    for step in range(1, steps + 1):
        place = {"step": step, "attempt": 1, "time_s": T0 + step}
        value = "NaN" if step == 5 else loss + (steps - step) / 100
        speed = {"perf/step_time_s": 0.9, "perf/tokens_per_s": 1000 * loss, "perf/mfu": 0.5, "data/batch_hash": "x"}
        lines.append(place | {"train/loss": value} | speed)
        if step % 20 == 0:
            lines.append(place | {"eval/loss": loss + 1 / step})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    start = {"event": "start", "step": 0, "attempt": 1, "time_s": T0}
    save = {"event": "save", "step": steps, "attempt": 1, "time_s": T0 + steps}
    (folder / "events.jsonl").write_text(json.dumps(start) + "\n" + json.dumps(save) + "\n")
    told = {"verdict": verdict, "reason": "a | b\nc", "rank": 0, "time_s": T0 + steps}
    (folder / "exit/1/0.json").write_text(json.dumps(told))
    return folder


@pytest.fixture
def sweep(tmp_path: Path) -> list[Path]:
    (tmp_path / "empty").mkdir()
    return [
        a_run(tmp_path / "slow", 100, 2.0, lr=1e-4, betas=[0.9, 0.95]),
        a_run(tmp_path / "fast", 70, 2.2, "crash", lr=1e-3, betas=[0.9, 0.95]),
        a_run(tmp_path / "short", 50, 3.0, "stopped", lr=1e-2, betas=[0.9, 0.95]),
        tmp_path / "empty",
    ]


def test_runs_are_compared_where_all_have_been(sweep: list[Path]) -> None:
    found = compare(sweep)
    slow, fast, short = found.runs
    assert [run.name for run in found.runs] == ["slow", "fast", "short"]
    assert (found.common_step, found.common_eval_step, found.without_run) == (50, 40, ("empty",))
    assert found.keys == ("optim.lr",) and fast.settings == {"optim.lr": 1e-3}
    # Ten steps at the end of each: their losses are a hundredth apart.
    assert (slow.loss, fast.loss, short.loss) == pytest.approx((2.045, 2.245, 3.045))
    assert (slow.common_loss, fast.common_loss, short.common_loss) == pytest.approx((2.545, 2.445, 3.045))
    assert (slow.eval_loss, fast.eval_loss) == pytest.approx((2.0 + 1 / 100, 2.2 + 1 / 60))
    assert (slow.common_eval_loss, fast.common_eval_loss) == pytest.approx((2.0 + 1 / 40, 2.2 + 1 / 40))
    assert (fast.state, fast.step, fast.max_steps, fast.tokens_per_s, fast.mfu) == ("crash", 70, 100, 2200.0, 0.5)
    assert slow.goodput == pytest.approx(0.9, abs=0.02)


def test_the_lowest_loss_need_not_be_the_last(tmp_path: Path) -> None:
    run = a_run(tmp_path / "up", 60, 2.0)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if "train/loss" in line and line["step"] > 40:
            line["train/loss"] = 9.0
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (found,) = compare([run]).runs
    assert (found.loss, found.best_loss) == pytest.approx((9.0, 2.245))


@pytest.mark.parametrize(
    ("sort", "first"),
    [("eval/loss", "slow"), ("train/loss", "fast"), ("perf/tokens_per_s", "short"), ("step", "slow"), ("name", "fast")],
)
def test_what_they_can_be_sorted_by(sweep: list[Path], sort: str, first: str) -> None:
    assert compare(sweep, sort).runs[0].name == first


def test_the_table_marks_the_best_and_says_what_went_wrong(sweep: list[Path]) -> None:
    found = compare(sweep)
    titles, *rows = comparison_table(found)
    cells = {row[0]: dict(zip(titles, row, strict=True)) for row in rows}
    assert cells["slow"]["train loss"].endswith(" *") and not cells["fast"]["train loss"].endswith(" *")
    assert cells["fast"]["train loss at 50"].endswith(" *") and cells["short"]["tokens/s"] == "3,000 *"
    assert all(not cells[name]["MFU"].endswith("*") for name in cells)  # equal: none is best
    assert cells["slow"]["verdict"] == "complete"
    assert cells["fast"]["verdict"] == "crash, step 70 of 100: rank 0: a | b c"
    notes = "\n".join(comparison_notes(found))
    assert "reached step 50 and evaluated at step 40" in notes and "No runs: empty" in notes
    assert len({len(line.rstrip().replace("\\|", "").split("|")) for line in markdown_lines([titles, *rows])}) == 1
    assert all(len(line) < 200 for line in text_lines([titles, *rows]))


def test_a_run_that_has_not_trained_is_listed_beside_others(tmp_path: Path, sweep: list[Path]) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new/job.jsonl").write_text('{"event": "job_start", "job_id": "1"}\n')
    found = compare([*sweep, tmp_path / "new"])
    assert found.common_step == 50 and found.runs[-1].name == "new" and found.keys == ("optim.lr",)
    assert comparison_table(found)[-1][-1] == "not started yet, step 0"
    only = compare([tmp_path / "new"])
    assert comparison_notes(only)[1] == "No run has trained yet." and len(comparison_table(only)) == 2


def test_mistakes_are_told(tmp_path: Path, sweep: list[Path]) -> None:
    with pytest.raises(ConfigError, match="none of 1 folders holds a run"):
        compare([tmp_path / "empty"])
    with pytest.raises(ConfigError, match="--sort loss is none of eval/loss"):
        compare(sweep, "loss")
    assert set(SORTS) > {"eval/loss", "goodput"}
