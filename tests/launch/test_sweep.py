"""A sweep is planned before it begins, and the machine is shared out among its runs."""

from pathlib import Path

import pytest

from scaletrain.config.load import dump_yaml
from scaletrain.errors import ConfigError
from scaletrain.launch.sweep import divide, is_complete, plan_sweep
from scaletrain.launch.verdicts import Verdict, write_verdict


def lines(folder: Path, *own: str) -> Path:
    file = folder / "rates.txt"
    file.write_text("\n".join(own))
    return file


def test_each_line_is_a_run_with_its_own_arguments(tmp_path: Path) -> None:
    file = lines(tmp_path, "# rates", "--optim.lr 3e-4", "", "--optim.lr=1e-3 --eval.prompts '[\"two words\"]'")
    first, second = plan_sweep(file, tmp_path / "runs", ["--seed=5", "--optim.lr=1"])
    assert (first.config.optim.lr, second.config.optim.lr) == (3e-4, 1e-3), "a line is stronger than what all share"
    assert first.config.seed == second.config.seed == 5 and second.config.eval.prompts == ("two words",)
    assert [run.config.run_dir for run in (first, second)] == [tmp_path / "runs" / "0", tmp_path / "runs" / "1"]


def test_what_is_wrong_is_told_of_all_lines_at_once(tmp_path: Path) -> None:
    file = lines(tmp_path, "--optim.lr 3e-4", "--optim.rl 1", "--optim.lr -1", "--optim.lr 'open")
    with pytest.raises(ConfigError) as caught:
        plan_sweep(file, tmp_path / "runs", [])
    text = str(caught.value)
    assert "3 problems" in text and "optim.lr" in text
    assert all(f"run {number} (" in text for number in (1, 2, 3)) and "run 0 (" not in text


def test_a_file_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no line with arguments"):
        plan_sweep(lines(tmp_path, "# nothing"), tmp_path, [])
    with pytest.raises(ConfigError, match=r"none\.txt"):
        plan_sweep(tmp_path / "none.txt", tmp_path, [])


def trained(run_dir: Path, yaml: str, verdicts: list[Verdict]) -> None:
    """Leaves what a run leaves behind, as far as a sweep looks at it."""
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text(yaml)
    (run_dir / "metrics.jsonl").write_text('{"step": 1, "attempt": 1}\n')
    for rank, verdict in enumerate(verdicts):
        write_verdict(run_dir, 1, rank, verdict, "")


def test_runs_are_complete_where_all_ranks_say_so(tmp_path: Path) -> None:
    file = lines(tmp_path, "--optim.lr 1", "--optim.lr 2", "--optim.lr 3")
    runs = plan_sweep(file, tmp_path / "runs", [])
    ends = ([Verdict.COMPLETE] * 2, [Verdict.COMPLETE, Verdict.CRASH], [])
    for run, verdicts in zip(runs, ends, strict=True):
        trained(run.config.run_dir, dump_yaml(run.config), verdicts)
    assert [is_complete(run) for run in plan_sweep(file, tmp_path / "runs", [])] == [True, False, False]
    longer = plan_sweep(file, tmp_path / "runs", ["--train.max_steps=5000"])
    assert not any(map(is_complete, longer)), "a longer run goes on"


def test_a_line_that_was_changed_is_not_taken_for_what_was_trained(tmp_path: Path) -> None:
    (run,) = plan_sweep(lines(tmp_path, "--optim.lr 1"), tmp_path / "runs", [])
    trained(run.config.run_dir, dump_yaml(run.config), [Verdict.COMPLETE])
    with pytest.raises(ConfigError, match=r"optim\.lr 1\.0 there and 2\.0 here; delete it, or name another file"):
        plan_sweep(lines(tmp_path, "--optim.lr 2"), tmp_path / "runs", [])


def test_cores_and_gpus_are_shared_out() -> None:
    assert [place.environment for place in divide(1, 8, [])] == [{}]
    assert [place.environment for place in divide(3, 8, [])] == [{"OMP_NUM_THREADS": "2"}] * 3
    (whole,) = divide(1, 8, ["0", "1", "2"])
    assert whole.environment == {"CUDA_VISIBLE_DEVICES": "0,1,2"} and whole.world_size == 3
    halves = divide(2, 8, ["4", "5", "6", "7"])
    assert [place.environment["CUDA_VISIBLE_DEVICES"] for place in halves] == ["4,5", "6,7"]
    with pytest.raises(ConfigError, match="there are 2 GPUs"):
        divide(3, 8, ["0", "1"])
