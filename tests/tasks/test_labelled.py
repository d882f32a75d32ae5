"""Documents with classes or numbers: rows without padding in sight, and losses as torch has them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from scaletrain.config.batch_plan import FILLING
from scaletrain.data.manifest import Manifest
from scaletrain.data.shards import ShardReader
from scaletrain.errors import ConfigError
from scaletrain.model.build import build_model
from scaletrain.tasks.classification import ClassificationTask, MultiLabel, SingleLabel
from scaletrain.tasks.regression import Regression, RegressionTask
from tests.tasks.made_rows import rows, setting
from tests.training.task_runs import build_examples

CLASSES = ("animals", "plants", "stones")
HEAD = {"causal": False, "n_classes": 3, "pooler": True, "n_segments": 2}
LABELS = [2, 0, 1, 1, 0]


def task() -> ClassificationTask:
    return ClassificationTask(setting({"name": "classification"}, HEAD, values=("label",), classes=CLASSES))


@given(st.lists(st.integers(1, 49), min_size=1, max_size=6))
def test_a_row_goes_as_far_as_the_longest_document(lengths: list[int]) -> None:
    made = rows([[length] for length in lengths], 48, values=np.zeros((len(lengths), 1)))
    inputs = task().collate(made, 0).inputs
    width = inputs["tokens"].shape[1]
    assert width == min(48, -(-max(lengths) // 16) * 16)
    assert inputs["mask"].sum(1).tolist() == [min(length, 48) for length in lengths]
    if inputs["documents"] is not None:
        assert torch.equal(inputs["documents"], (~inputs["mask"]).int())
    else:
        assert inputs["mask"].all()
    for row, length in enumerate(lengths):
        assert inputs["tokens"][row, :length].tolist() == made.tokens[row, : min(length, width)].tolist()


@pytest.mark.parametrize("kind", ["transformer", "lstm", "cnn"])
def test_what_is_told_does_not_depend_on_padding(kind: str) -> None:
    """The same document alone, beside a longer one, and twice as far padded."""
    shape = (
        {**HEAD, "init_std": 0.5} if kind == "transformer" else {"kind": kind, "n_classes": 3, "causal": kind == "lstm"}
    )
    torch.manual_seed(0)
    model = build_model(setting({"name": "classification"}, shape, values=("label",), classes=CLASSES).model).eval()
    told = []
    for lengths, width in (([[7]], 48), ([[7], [40]], 48), ([[7], [60]], 60)):
        inputs = task().collate(rows(lengths, width, values=np.zeros((len(lengths), 1))), 0).inputs
        hidden = model.hidden(inputs["tokens"], None, inputs["documents"])
        told.append(model.class_logits(hidden, inputs["mask"])[0])
    for other in told[1:]:
        torch.testing.assert_close(other, told[0], atol=1e-5, rtol=1e-5)


def test_parts_are_segments() -> None:
    parts = np.zeros((1, 49), dtype=np.uint8)
    parts[0, 5:] = 1
    inputs = task().collate(rows([[9]], 48, parts=parts, values=np.zeros((1, 1))), 0).inputs
    assert inputs["segments"].tolist() == [[0] * 5 + [1] * 11]


def test_filling_weighs_nothing() -> None:
    made = rows([[9], [1]], 48, [4, FILLING], values=np.array([[2.0], [0.0]]))
    collated = task().collate(made, 0)
    assert collated.targets_B.tolist() == [1, 0]
    model = build_model(setting({"name": "classification"}, HEAD, values=("label",), classes=CLASSES).model)
    both = SingleLabel(model, None, 0.0).eval()(**collated.inputs)
    alone = task().collate(rows([[9]], 48, [4], values=np.array([[2.0]])), 0)
    one = SingleLabel(model, None, 0.0).eval()(**alone.inputs)
    torch.testing.assert_close(both.loss_sum, one.loss_sum)
    assert both.nll_B[1] == 0 and both.targets_B.tolist() == [1, 0]


class Told(nn.Module):
    """A model that says what it was made with."""

    def __init__(self, outputs: torch.Tensor) -> None:
        super().__init__()
        self.outputs = nn.Parameter(outputs)

    def hidden(self, *args: object, **more: object) -> torch.Tensor:
        return self.outputs

    def class_logits(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return hidden


def loss_of(module: nn.Module, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss and its gradient with respect to the outputs."""
    count = len(values)
    dummy = torch.zeros(count, 1, dtype=torch.int64)
    terms = module(dummy, dummy.bool(), values, torch.ones(count, dtype=torch.bool))
    terms.loss_sum.backward()
    return terms.loss_sum, module.model.outputs.grad


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 3.0]])
def test_the_loss_of_one_class_is_that_of_torch(smoothing: float, weights: list[float] | None) -> None:
    outputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor(LABELS)
    weights_C = None if weights is None else torch.tensor(weights)
    loss, gradient = loss_of(SingleLabel(Told(outputs), weights_C, smoothing), labels[:, None].float())
    reference = outputs.clone().requires_grad_()
    # torch smooths inside of its weights; without smoothing both are the same.
    if weights is None or not smoothing:
        expected = nn.CrossEntropyLoss(weights_C, reduction="sum", label_smoothing=smoothing)(reference, labels)
    else:
        each = nn.CrossEntropyLoss(reduction="none", label_smoothing=smoothing)(reference, labels)
        expected = (each * weights_C[labels]).sum()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, reference.grad)


@pytest.mark.parametrize("delta", [0.0, 0.4])
def test_the_loss_of_numbers_is_that_of_torch(delta: float) -> None:
    generator = torch.Generator().manual_seed(0)
    outputs, values = torch.randn(5, 2, generator=generator), torch.randn(5, 2, generator=generator)
    loss, gradient = loss_of(Regression(Told(outputs), delta), values)
    reference = outputs.clone().requires_grad_()
    expected = (nn.HuberLoss(delta=delta) if delta else nn.MSELoss())(reference, values) * 5
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, reference.grad)


def test_the_loss_of_several_classes_is_that_of_torch() -> None:
    outputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    values = torch.tensor([[0, 1, 1], [0, 0, 0], [1, 0, 1], [1, 1, 1], [0, 1, 0]]).float()
    loss, _ = loss_of(MultiLabel(Told(outputs), None), values)
    torch.testing.assert_close(loss, nn.BCEWithLogitsLoss()(outputs, values) * 5)


def test_balanced_weights_are_those_of_scikit_learn_and_need_indexes_alone(tmp_path: Path) -> None:
    from sklearn.utils.class_weight import compute_class_weight

    manifest = Manifest.open(build_examples(tmp_path / "examples", "classes"))
    reader = ShardReader(manifest, "train")
    assert len(reader.shards) > 1
    labels = np.concatenate(
        [
            [reader.values(number, one)[0] for one in range(shard.documents)]
            for number, shard in enumerate(reader.shards)
        ]
    )
    for shard in reader.shards:
        Path(manifest.locate(shard.path)).unlink()
    shape, known = HEAD | {"n_classes": 12}, {"values": manifest.values, "classes": manifest.classes}
    made = setting({"name": "classification", "class_weights": "balanced"}, shape, **known)
    module = ClassificationTask(replace(made, readers=(ShardReader(manifest, "train"),))).module(
        Told(torch.zeros(1, 12))
    )
    np.testing.assert_allclose(
        module.weights, compute_class_weight("balanced", classes=np.arange(12), y=labels), rtol=1e-6
    )


def test_a_head_of_another_width_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"n_classes.* is 4, but corpus has 3 classes. Set --model.n_classes 3"):
        ClassificationTask(
            setting({"name": "classification"}, HEAD | {"n_classes": 4}, values=("label",), classes=CLASSES)
        )
    with pytest.raises(ConfigError, match="has 1 values"):
        RegressionTask(setting({"name": "regression"}, HEAD, values=("size",)))


def test_figures_are_of_the_outputs_beside_the_values() -> None:
    outputs = torch.tensor([[3.0, 0, 0, 0], [0, 3.0, 0, 2.0], [0, 0, 3.0, 2.0], [0, 0, 3.0, 2.0]])
    assert task().figures(0.0, outputs)["eval/accuracy"] == 0.75
    numbers = RegressionTask(setting({"name": "regression"}, HEAD | {"n_classes": 1}, values=("size",)))
    assert numbers.figures(0.0, torch.tensor([[1.0, 2.0], [2.0, 2.0], [3.0, 5.0]]))["eval/mse"] == pytest.approx(5 / 3)


def test_classes_and_numbers_are_told_by_name() -> None:
    logits = torch.tensor([[0.0, 2.0, -1.0], [3.0, -3.0, 1.0]])
    (one, other) = task().tell(logits)
    assert (one["label"], other["label"]) == ("plants", "animals")
    assert list(one["probabilities"]) == list(CLASSES)
    assert list(one["probabilities"].values()) == pytest.approx(torch.softmax(logits[0], 0).tolist())
    several = ClassificationTask(setting({"name": "classification"}, HEAD, values=CLASSES, classes=CLASSES))
    (one, other) = several.tell(logits)
    assert (one["label"], other["label"]) == (["animals", "plants"], ["animals", "stones"])
    assert list(other["probabilities"].values()) == pytest.approx(torch.sigmoid(logits[1]).tolist())
    numbers = RegressionTask(setting({"name": "regression"}, HEAD | {"n_classes": 1}, values=("size",)))
    assert numbers.tell(torch.tensor([[1.5], [2.0]])) == [{"value": 1.5}, {"value": 2.0}]
    pairs = RegressionTask(setting({"name": "regression"}, HEAD | {"n_classes": 2}, values=("size", "age")))
    assert pairs.tell(torch.tensor([[1.5, 2.0]])) == [{"value": [1.5, 2.0]}]
