"""The examples run as a user runs them, in miniature."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from examples.debian import run as debian
from examples.outcomes import Outcome, table
from examples.running import START, Example, Plan
from examples.splits import Record, write_records
from examples.stdlib import run as stdlib
from examples.stdlib.answers import Answer, is_well_formed
from scaletrain.config.derive import check
from scaletrain.config.load import load_config
from scaletrain.errors import ConfigError

ROOT = Path(__file__).parents[2]
TOPICS = ("admin", "fonts", "games", "graphics", "mail", "net", "science", "sound", "text", "x11")
ALL = [*debian.examples().values(), *stdlib.examples().values()]
SPLITS = ("train", "train", "train", "validation", "test")


def run(module: str, *arguments: str | Path) -> str:
    words = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=os.environ, timeout=300)
    assert done.returncode == 0, f"{done.stdout[-2000:]}{done.stderr[-3000:]}"
    return done.stdout


def records(count: int, make: object) -> list[Record]:
    assert callable(make)
    return [{**make(number), "split": SPLITS[number % len(SPLITS)]} for number in range(count)]


@pytest.fixture(scope="module")
def descriptions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few files as prepare.py writes them, and the figures of a simple method."""
    folder = tmp_path_factory.mktemp("debian")

    def topic(number: int) -> Record:
        label = TOPICS[number // len(SPLITS) % len(TOPICS)]
        return {"text": f"number {number} is about {label} and more of {label}", "label": label}

    labelled = records(200, topic)
    write_records(folder / "topics_10.jsonl", labelled)
    write_records(folder / "topics_1.jsonl", labelled)
    write_records(folder / "language_model.jsonl", [{"text": one["text"]} for one in labelled * 3])
    simple = {"file": "topics_10", "method": "majority", "test": {"accuracy": 0.1, "macro_f1": 0.018}}
    (folder / "baselines.json").write_text(json.dumps([simple]))
    return folder


@pytest.mark.thorough
def test_debian_in_miniature(descriptions: Path, tmp_path: Path) -> None:
    asked = [
        "--data",
        descriptions,
        "--out",
        tmp_path,
        "--only",
        "tuned_topics_10",
        "--max_steps",
        "2",
    ]
    told = run("examples.debian.run", *asked)
    for script, name in (("train", "encoder"), ("finetune", "tuned_topics_10")):
        assert f"--run_dir {tmp_path}/runs/{name} " in told and f"scaletrain/{script}.py" in told
    outcomes = {one["name"]: one for one in json.loads((tmp_path / "results.json").read_text())}
    assert outcomes.keys() == {"encoder", "tuned_topics_10"}
    assert 0 <= outcomes["tuned_topics_10"]["figures"]["accuracy"] <= 1
    assert outcomes["tuned_topics_10"]["documents_split"] == "test"
    assert outcomes["tuned_topics_10"]["steps"] == 2
    page = (tmp_path / "results.md").read_text()
    assert "| majority (no network) | 0.1 |" in page and "| own encoder, tuned |" in page

    again = run("examples.debian.run", *asked)
    assert "$ python" not in again
    assert (tmp_path / "results.md").read_text() == page
    with pytest.raises(AssertionError, match="is of another command or configuration of encoder"):
        run("examples.debian.run", *asked[:-1], "3")


@pytest.mark.thorough
def test_the_library_in_miniature(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    code = "def f{0}(a):\n    return a + {0}\n\n\nclass C{0}:\n    pass\n"
    write_records(data / "code.jsonl", [{"text": code.format(number)} for number in range(300)])
    ask = "Write `f{0}` of Python's module `m`.\n\n```python\ndef f{0}(a):\n```\n\nAdd."
    answer = "```python\ndef f{0}(a):\n    return a + {0}\n```"

    def talk(number: int) -> Record:
        turns = (("user", ask), ("assistant", answer))
        return {"messages": [{"role": role, "content": text.format(number)} for role, text in turns]}

    write_records(data / "chat.jsonl", records(100, talk))
    out = tmp_path / "out"
    told = run("examples.stdlib.run", "--data", data, "--out", out, "--only", "chat", "--max_steps", "1")
    assert "Of 20 answers " in told
    answers = (out / "answers.md").read_text()
    assert answers.startswith("Of 20 answers ") and answers.count("answered:\n") == 5
    (code_run, chat) = json.loads((out / "results.json").read_text())
    assert code_run["documents_split"] == "validation"
    assert chat["figures"]["perplexity"] > 1


@pytest.mark.parametrize("example", ALL, ids=lambda example: example.name)
def test_a_configuration_can_be_used(example: Example) -> None:
    given = dict(zip(example.arguments[::2], example.arguments[1::2], strict=True))
    overrides = {key.removeprefix("--"): value for key, value in given.items()}
    if example.init == START:  # the model comes from there, a BERT
        overrides |= {"model.preset": "bert_base", "model.output_transform": "false", "model.output_bias": "false"}
    config = load_config(example.config, {**overrides, "data.manifest": "manifest.json"})
    check(config)
    assert config.optim.warmup_steps < config.train.max_steps or example.name == "chat_before"


def plan(folder: Path, pretrained: Path | None = None) -> Plan:
    return Plan(folder, folder, debian.corpora(), debian.examples(), pretrained)


def test_what_an_example_begins_with_is_run_before_it(tmp_path: Path) -> None:
    assert plan(tmp_path).with_needed(["tuned_topics", "cnn_topics"]) == ["encoder", "tuned_topics", "cnn_topics"]
    assert plan(tmp_path, tmp_path).with_needed([]) == list(debian.examples())
    without = plan(tmp_path).with_needed([])
    assert "scratch_topics" in without and not [name for name in without if name.startswith("minilm")]


def test_what_cannot_be_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'cnn'; known are encoder, "):
        plan(tmp_path).with_needed(["cnn"])
    with pytest.raises(ConfigError, match="--pretrained"):
        plan(tmp_path).with_needed(["minilm_topics"])


def outcome(name: str, subject: str, figures: dict[str, float]) -> Outcome:
    return Outcome(name, subject, name, figures, "test", 1200, 2.4, 500.0, 900.4, 3.0)


def test_the_table_has_a_part_for_each_file_with_its_own_columns() -> None:
    found = [outcome("A", "topics", {"accuracy": 0.91234, "loss": 2.0}), outcome("B", "regression", {"r2": 0.5})]
    simple = [
        {"file": "topics", "method": "bayes", "test": {"accuracy": 0.8, "macro_f1": 0.7}},
        {"file": "classification", "method": "bayes", "test": {"accuracy": 0.8}},
    ]
    assert table(found, simple).splitlines() == [
        "| topics | accuracy | macro_f1 | steps | epochs | training | time of a core |",
        "|---|---:|---:|---:|---:|---:|---:|",
        "| bayes (no network) | 0.8 | 0.7 |  |  |  |  |",
        "| A | 0.9123 |  | 1,200 | 2.4 | 500 s | 900 s |",
        "",
        "| regression | r2 | steps | epochs | training | time of a core |",
        "|---|---:|---:|---:|---:|---:|",
        "| B | 0.5 | 1,200 | 2.4 | 500 s | 900 s |",
    ]


def test_the_plot_has_a_curve_for_each_method_with_several_budgets() -> None:
    accuracies = {"topics_1": 0.5, "topics_10": 0.7, "topics": 0.9}
    found = [outcome("tuned", subject, {"accuracy": value}) for subject, value in accuracies.items()]
    found.append(outcome("once", "topics", {"accuracy": 0.8}))
    drawn = debian.plot(found, [])
    assert drawn.count("<polyline") == 1 and ">tuned</text>" in drawn and ">once</text>" not in drawn
    assert "10 % of the labels" in drawn


@pytest.mark.parametrize(
    ("text", "has_ended", "expected"),
    [
        ("```python\ndef f(a):\n    return a\n```", True, True),
        ("```python\ndef f(a):\n    return a\n```", False, False),
        ("```python\ndef g(a):\n    return a\n```", True, False),
        ("def f(a): pass", True, False),
    ],
)
def test_the_form_of_an_answer_in_code(text: str, has_ended: bool, expected: bool) -> None:
    question = "Write `f`.\n\n```python\ndef f(a):\n```\n\nAdd."
    assert is_well_formed(Answer(question, text, has_ended)) is expected


def test_the_form_of_an_answer_in_words() -> None:
    assert is_well_formed(Answer("What does `f(a)` do?", "Adds.", True))
    assert not is_well_formed(Answer("What does `f(a)` do?", "```python\ndef f", True))
    assert not is_well_formed(Answer("What does `f(a)` do?", " ", True))
