"""tools/evaluate.py as a user meets it: the figures that the run itself told, on whole splits."""

import json
from pathlib import Path

import pytest

from scaletrain.corpus.build import BuildOptions, build_from_files
from scaletrain.corpus.documents import find_corpus
from scaletrain.corpus.examples import ExampleOptions
from scaletrain.monitors.jsonl_writer import read_metrics
from tests.tools.trained import ADAPTED, Tool, TrainedRuns
from tests.training.task_runs import KINDS, records

TOLERANCE = 1e-5
"""In fp32; of adapters the tool computes with their product, the run with both factors."""


@pytest.mark.parametrize("name", [*KINDS, ADAPTED])
def test_figures_are_those_of_the_run(name: str, trained: TrainedRuns, tool: Tool) -> None:
    run = trained.run(name)
    code, out, _ = tool("evaluate.py", "--run_dir", str(run.run_dir), "--json")
    told = json.loads(out)
    judged = [row for row in read_metrics(run.run_dir / "metrics.jsonl") if "eval/loss" in row][-1]
    # The gap is one between two losses of a run.
    expected = {key: value for key, value in judged.items() if key.startswith("eval/") and key != "eval/gap"}
    assert code == 0 and expected.keys() >= {"eval/loss"}
    assert {key: float(value) for key, value in told.items() if key.startswith("eval/")} == pytest.approx(
        expected, rel=TOLERANCE, abs=TOLERANCE, nan_ok=True
    )
    assert (told["step"], told["split"]) == (6, "validation")


def test_an_older_step_and_another_split_are_told_in_words(trained: TrainedRuns, tool: Tool) -> None:
    run = trained.run("regression").run_dir
    code, out, _ = tool("evaluate.py", "--run_dir", str(run), "--step", "3", "--split", "train")
    assert code == 0
    assert f"{run} at step 3, regression: train split of" in out and "48 sequences, 48 targets" in out
    assert "eval/r2" in out


def test_another_corpus_with_a_test_split_is_judged_by(trained: TrainedRuns, tool: Tool, tmp_path: Path) -> None:
    run = trained.run("classification").run_dir
    asked = [record | {"split": ("train", "test")[number % 4 == 0]} for number, record in enumerate(records("classes"))]
    manifest = build(tmp_path, asked, run / "tokenizer.json")
    arguments = ("evaluate.py", "--run_dir", str(run), "--manifest", str(manifest), "--json")
    code, out, _ = tool(*arguments, "--split", "test")
    assert code == 0 and json.loads(out)["targets"] == 15
    code, out, err = tool(*arguments)
    assert (code, out) == (2, "") and "no such split, but test, train" in err


def test_a_corpus_of_another_kind_is_refused(trained: TrainedRuns, tool: Tool, tmp_path: Path) -> None:
    run = trained.run("classification").run_dir
    arguments = ("evaluate.py", "--run_dir", str(run), "--manifest")
    code, _, err = tool(*arguments, str(build(tmp_path / "own", list(records("classes")), 290)), "--split", "train")
    assert code == 2 and "another tokenizer" in err and str(run / "tokenizer.json") in err
    fewer = [record for record in records("classes") if record["label"] != "slow"]
    code, _, err = tool(*arguments, str(build(tmp_path / "fewer", fewer, run / "tokenizer.json")), "--split", "train")
    assert code == 2 and "The classes of" in err and "in the same order" in err
    code, _, err = tool(*arguments, str(trained.corpus("pairs")))
    assert code == 2 and "reads documents with classes" in err


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--run_dir", "no/such/run"], "holds no config.yaml"),
        (["--split", "dev"], "--split dev: must be one of train, validation, test"),
        (["--step", "soon"], "--step soon is no whole number"),
        (["--step", "5"], "5"),
        (["--json", "yes"], "--json yes: expected true or false"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_said(trained: TrainedRuns, tool: Tool, wrong: list[str], message: str) -> None:
    run = str(trained.run("classification").run_dir)
    code, out, err = tool("evaluate.py", "--run_dir", run, *wrong)
    assert (code, out) == (2, "") and message in err


def build(folder: Path, made: list[dict[str, object]], tokenizer: Path | int) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / "records.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in made))
    examples = ExampleOptions("classes")
    options = BuildOptions(tokenizer, source="made", validation_share=0.0, examples=examples)
    return build_from_files(find_corpus(file, examples=examples), folder / "corpus", options)
