"""A classifier begins with a language model: its head is new, its adapters are all else that learns."""

from pathlib import Path

import pytest

from scaletrain.checkpoint.weights import read_weights
from scaletrain.convert.checkpoint_tensors import find_checkpoint
from tests.training.mishaps import Mishap
from tests.training.task_runs import TaskRun, build_examples

PRETRAINS = {"task.name": "causal_lm", "data.packing": "document", "train.max_steps": 4}
CLASSIFIES = {
    "task.name": "classification",
    "model.causal": False,
    "model.pooling": "mean",
    "model.n_segments": 2,
    "model.n_classes": 12,
    "data.packing": "document",
    "lora.rank": 2,
    "lora.also_train": "[classifier, segment_embedding]",
}


@pytest.mark.slow
@pytest.mark.parametrize("stage", [pytest.param(1, marks=pytest.mark.thorough), 3])
def test_a_classifier_of_a_language_model(tmp_path: Path, stage: int) -> None:
    base = build_examples(tmp_path / "examples", "classes")
    for name in ("first", "cut", "whole"):
        (tmp_path / name).mkdir()
    first = TaskRun(tmp_path / "first", base, PRETRAINS)
    first.complete(2)
    given = CLASSIFIES | {"init": first.run_dir, "deepspeed": f"configs/ds/zero{stage}.json"}
    whole, cut = TaskRun(tmp_path / "whole", base, given), TaskRun(tmp_path / "cut", base, given)
    whole.complete(2)
    (event,) = whole.events("init")
    told = " ".join(event["fit"])
    assert "classifier.weight" in told and "segment_embedding.weight" in told and "lora_A" in told
    before, after = (read_weights(find_checkpoint(run.run_dir)) for run in (first, whole))
    assert all(after[name].equal(weight) for name, weight in before.items())
    assert after["blocks.1.attention.v.lora_B.weight"].any() and after["classifier.bias"].any()
    assert cut.start(2, mishap=Mishap(kill_at=4)) == ("requeue", "requeue")
    cut.complete(2)
    for name in ("train/loss", "eval/loss", "eval/accuracy", "eval/gap"):
        values = [row.get(name) for row in whole.rows]
        assert any(value is not None for value in values)
        assert [row.get(name) for row in cut.rows] == values
