import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from examples.debian.baselines import (
    class_figures,
    classify,
    first_sentence,
    nearest_targets,
    number_figures,
    parse,
    regress,
    reword,
)
from examples.splits import write_records
from scaletrain.errors import ConfigError
from tests.examples.invented_lists import invented, write_lists
from tests.examples.test_prepare import prepare

CLASSES = {"fruit": ("apple", "pear", "plum"), "metal": ("iron", "tin", "zinc"), "river": ("Po", "Elbe", "Seine")}
HELD_OUT = ("validation", "test")


def classes() -> dict[str, list[dict[str, str]]]:
    """Three classes whose words tell them apart; four of ten training records are of the first."""

    def record(number: int) -> dict[str, str]:
        label = ("fruit", "metal", "river", "fruit", "metal", "river", "fruit", "metal", "river", "fruit")[number % 10]
        return {"text": f"the {CLASSES[label][number // 10 % 3]} of number {number}", "label": label}

    return {split: [record(number) for number in range(60)] for split in ("train", *HELD_OUT)}


def test_words_tell_classes_apart() -> None:
    majority, bayes, logistic = classify("topics", classes())
    assert majority.test["accuracy"] == pytest.approx(0.4)
    assert majority.test["macro_f1"] == pytest.approx(
        2 * 0.4 / (0.4 + 1) / 3
    )  # precision 0.4 and recall 1 of one class
    for result in (bayes, logistic):
        assert result.validation == result.test == {"accuracy": 1.0, "macro_f1": 1.0}


def test_words_tell_numbers() -> None:
    values = {"small": 1.0, "middle": 2.0, "large": 3.0}
    records = [{"text": f"a {word} thing", "value": value} for word, value in values.items()] * 20
    mean, ridge = regress("regression", {split: records for split in ("train", *HELD_OUT)})
    assert mean.test == {"mse": pytest.approx(2 / 3), "mae": pytest.approx(2 / 3), "r2": pytest.approx(0)}
    assert ridge.chosen == 0.1
    assert ridge.test["r2"] > 0.99
    assert ridge.test["spearman"] == pytest.approx(1)


def test_the_value_is_chosen_on_the_validation_split_alone() -> None:
    splits = classes()
    wrong = [{**record, "label": "river"} for record in splits["test"]]
    chosen, other = (classify("topics", {**splits, "test": test})[2] for test in (splits["test"], wrong))
    assert (chosen.chosen, chosen.validation) == (other.chosen, other.validation)
    assert other.test["accuracy"] == pytest.approx(0.3)  # what is river


def test_figures_by_hand() -> None:
    guessed, true = np.array(["a", "a", "b", "b"]), np.array(["a", "b", "b", "c"])
    # F1 of a: 2/3; of b: 1/2; of c: 0.
    assert class_figures(guessed, true) == {"accuracy": 0.5, "macro_f1": pytest.approx((2 / 3 + 1 / 2) / 3)}
    figures = number_figures(np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 3.0]))
    assert figures == {
        "mse": pytest.approx(1 / 3),
        "mae": pytest.approx(1 / 3),
        "r2": 0.5,
        "spearman": pytest.approx(1),
    }


def test_methods_without_a_model() -> None:
    training = [{"source": "the red house stands", "target": "casa rossa"}, {"source": "a dog runs", "target": "cane"}]
    asked = [{"source": "the red house stands here", "target": "casa rossa"}]
    assert nearest_targets(training, asked) == ["casa rossa"]
    assert first_sentence("Version 2.0 is here. And more.") == "Version 2.0 is here."
    assert first_sentence("no end") == "no end"
    splits = {
        "train": training,
        "validation": asked,
        "test": [{"source": "one two three.", "target": "one two three."}],
    }
    copied, _, first, _ = reword("summarisation", splits)
    assert copied.test == first.test == {"rouge1": 1.0, "rouge2": 1.0, "rougeL": 1.0}
    long = [{"source": "one two three four five", "target": "one two three four five"}]
    copied, nearest = reword("translation_it", {"train": training, "validation": asked, "test": long})
    assert copied.test == {"bleu": pytest.approx(100), "chrf": pytest.approx(100)}
    assert nearest.test["bleu"] == 0


@pytest.mark.thorough
def test_the_program_writes_what_it_prints(tmp_path: Path) -> None:
    lists = write_lists(tmp_path / "lists", [invented(number) for number in range(400)])
    data, out = tmp_path / "data", tmp_path / "baselines.json"
    assert prepare("debian.prepare", "--out", data, "--lists", lists).returncode == 0
    done = prepare("debian.baselines", "--data", data, "--out", out, "--files", "topics,regression_10,translation_it")
    assert done.returncode == 0, done.stderr
    results = json.loads(out.read_text())
    assert [(result["file"], result["method"]) for result in results] == [
        ("topics", "majority"),
        ("topics", "naive Bayes"),
        ("topics", "TF-IDF + logistic regression"),
        ("regression_10", "mean"),
        ("regression_10", "TF-IDF + ridge"),
        ("translation_it", "copy of the source"),
        ("translation_it", "target of the nearest source"),
    ]
    assert results[2]["test"]["accuracy"] > results[0]["test"]["accuracy"]
    for result in results:
        assert f"| {result['file']} | {result['method']} |" in done.stdout


@pytest.mark.parametrize(
    ("files", "message"),
    [("topics,weather", "'weather'; known are topics,"), ("topics_1", "topics_1.jsonl is missing")],
)
def test_an_unknown_or_missing_file_is_named(tmp_path: Path, files: str, message: str) -> None:
    write_records(tmp_path / "topics.jsonl", [])
    with pytest.raises(ConfigError, match=message):
        parse(data=str(tmp_path), out=str(tmp_path / "out"), files=files)


def test_without_scikit_learn_the_extra_is_named(tmp_path: Path) -> None:
    (tmp_path / "sklearn").mkdir()
    (tmp_path / "sklearn/__init__.py").write_text("raise ModuleNotFoundError('No module', name='sklearn')")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-m", "examples.debian.baselines"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 1
    assert done.stderr == "error: sklearn is missing: pip install 'scaletrain[baselines]'\n"
