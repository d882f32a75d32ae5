"""tools/predict.py as a user meets it: predictions that add up to the figures of the same model."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from scaletrain.checkpoint.weights import load_weights
from scaletrain.config.load import load_config
from scaletrain.data.tokenizer import load_tokenizer
from scaletrain.model.transformer import Transformer
from tests.tools.trained import TOOLS, Tool, TrainedRuns
from tests.training.task_runs import records


def predict(tool: Tool, run: Path, asked: list[dict[str, Any]], tmp_path: Path) -> list[dict[str, Any]]:
    file, out = tmp_path / "asked.jsonl", tmp_path / "told.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in asked))
    code, printed, _ = tool("predict.py", "--run_dir", str(run), "--input", str(file), "--out", str(out))
    assert (code, printed) == (0, "")
    return [json.loads(line) for line in out.read_text().splitlines()]


def figures(tool: Tool, run: Path) -> dict[str, Any]:
    return dict(json.loads(tool("evaluate.py", "--run_dir", str(run), "--json")[1]))


def held_out(format: str) -> list[dict[str, Any]]:
    return [record for record in records(format) if record["split"] == "validation"]


@pytest.mark.parametrize("name", ["classification", "cnn", "adapted"])
def test_classes_are_those_that_evaluation_counts(name: str, trained: TrainedRuns, tool: Tool, tmp_path: Path) -> None:
    run = trained.run(name).run_dir
    asked = held_out("classes")
    told = predict(tool, run, asked, tmp_path)
    assert [record["text"] for record in told] == [record["text"] for record in asked]
    expected = figures(tool, run)
    right = [record["label"] == record["given_label"] for record in told]
    assert sum(right) / len(right) == pytest.approx(expected["eval/accuracy"])
    nll = [-math.log(record["probabilities"][record["given_label"]]) for record in told]
    assert sum(nll) / len(nll) == pytest.approx(expected["eval/loss"], rel=1e-5)
    for record in told:
        assert sum(record["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert record["probabilities"][record["label"]] == max(record["probabilities"].values())


def test_numbers_are_those_that_evaluation_compares(trained: TrainedRuns, tool: Tool, tmp_path: Path) -> None:
    run = trained.run("regression").run_dir
    told = predict(tool, run, held_out("numbers"), tmp_path)
    pairs = [pair for record in told for pair in zip(record["value"], record["given_value"], strict=True)]
    mse = sum((value - given) ** 2 for value, given in pairs) / len(pairs)
    assert mse == pytest.approx(figures(tool, run)["eval/mse"], rel=1e-5)


def test_what_was_hidden_is_told_as_the_model_alone_tells_it(trained: TrainedRuns, tool: Tool, tmp_path: Path) -> None:
    run = trained.run("masked_lm").run_dir
    (short, long) = predict(tool, run, [{"text": "red <mask> blue [MASK]."}, {"text": "one " * 9 + "<mask>"}], tmp_path)
    tokenizer, config = load_tokenizer(run / "tokenizer.json"), load_config(run / "config.yaml", {}).model
    mask = tokenizer.get_vocab_size()  # this tokenizer has none: the first free row of the embedding
    red, blue, point = (tokenizer.encode(text, add_special_tokens=False).ids for text in ("red", " blue", "."))
    tokens = [*red, mask, *blue, mask, *point, 0]
    model = Transformer(config).eval()
    model.load_state_dict(load_weights(run / "checkpoints"))
    with torch.no_grad():
        chances = model(torch.tensor([tokens])).softmax(-1)[0]
    assert len(short["fills"]) == 2 and len(long["fills"]) == 1
    for place, guesses in zip([i for i, token in enumerate(tokens) if token == mask], short["fills"], strict=True):
        # Not the end of a text, nor rows of the embedding that stand for nothing.
        best = chances[place, 1:mask].topk(5)
        assert [guess["probability"] for guess in guesses] == pytest.approx(best.values.tolist(), rel=1e-4)
        assert [guess["token"] for guess in guesses] == [tokenizer.decode([i + 1]) for i in best.indices.tolist()]


def test_order_is_kept_over_batches_and_what_is_cut_is_told(trained: TrainedRuns, tool: Tool, tmp_path: Path) -> None:
    run = trained.run("classification").run_dir
    asked = [{"text": f"{'red ' * (number * 7 % 60 + 1)}", "number": number} for number in range(1100)]
    file = tmp_path / "asked.jsonl"
    file.write_text("".join(json.dumps(record) + "\n\n" for record in asked))
    code, out, err = tool("predict.py", "--run_dir", str(run), "--input", str(file))
    told = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [record["number"] for record in told] == list(range(1100))
    tokenizer = load_tokenizer(run / "tokenizer.json")
    # The end is a token too, and the model reads 48.
    cut = [len(tokenizer.encode(record["text"]).ids) + 1 > 48 for record in asked]
    assert [record.get("truncated", False) for record in told] == cut
    assert f"{sum(cut)} of 1100 texts are longer than the 48 tokens that the model reads" in err
    # Equal texts have equal answers, whatever company they were computed in.
    for one, other in zip(told[:60], told[60:120], strict=True):
        assert one["label"] == other["label"]
        assert one["probabilities"] == pytest.approx(other["probabilities"], rel=1e-4)


@pytest.mark.slow
def test_standard_input_is_read(trained: TrainedRuns) -> None:
    run = trained.run("regression").run_dir
    command = [sys.executable, str(TOOLS / "predict.py"), "--input", "-", "--run_dir", str(run)]
    done = subprocess.run(command, input=b'{"text": "red"}\n', capture_output=True, timeout=120)
    assert done.returncode == 0 and json.loads(done.stdout)["value"]


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("classification", '{"label": "red"}', "no text in 'text'"),
        ("classification", '{"text": 3}', "text is a int, not text"),
        ("classification", "red", "line 2: not a line of JSON"),
        ("regression", '{"text": "red", "text_pair": "blue"}', "the run has learnt from single texts"),
        ("sft", '{"text": "red"}', "which writes; use python tools/generate.py"),
    ],
)
def test_what_cannot_be_predicted_is_said(
    name: str, line: str, message: str, trained: TrainedRuns, tool: Tool, tmp_path: Path
) -> None:
    file = tmp_path / "asked.jsonl"
    file.write_text('{"text": "red"}\n' + line + "\n")
    out = tmp_path / "told.jsonl"
    arguments = ("--run_dir", str(trained.run(name).run_dir), "--input", str(file), "--out", str(out))
    code, printed, err = tool("predict.py", *arguments)
    assert (code, printed) == (2, "") and message in err
    assert list(tmp_path.iterdir()) == [file]
