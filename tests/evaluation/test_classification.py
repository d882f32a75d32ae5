"""Figures of classification are scikit-learn's, and the calibration error is its definition."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

from scaletrain.evaluation.classification import (
    confusion_counts,
    expected_calibration_error,
    multi_label_metrics,
    single_label_metrics,
)
from scaletrain.monitors import names

EXACT = {"rel": 1e-12, "abs": 1e-12}  # the same sums in another order


@st.composite
def predictions(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    n_classes, n_examples = draw(st.integers(1, 5)), draw(st.integers(1, 40))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    sharpness = draw(st.sampled_from([0.1, 1.0, 20.0]))
    return random.normal(size=(n_examples, n_classes)) * sharpness, random.integers(0, n_classes, n_examples)


@given(predictions())
def test_accuracy_and_f1_are_scikit_learns(case: tuple[np.ndarray, np.ndarray]) -> None:
    logits, labels = case
    found, predicted = single_label_metrics(logits, labels), logits.argmax(axis=1)
    assert found[names.EVAL_ACCURACY] == pytest.approx(accuracy_score(labels, predicted), **EXACT)
    assert found[names.EVAL_MACRO_F1] == pytest.approx(f1_score(labels, predicted, average="macro"), **EXACT)
    n_classes = logits.shape[1]
    counts = confusion_counts(predicted, labels, n_classes)
    assert np.array_equal(counts, confusion_matrix(labels, predicted, labels=range(n_classes)))


def error_by_definition(confidences: Sequence[float], is_right: Sequence[bool]) -> float:
    """Guo et al. 2017, equations 2 to 5, read aloud."""
    total = 0.0
    for m in range(1, 16):
        own = [i for i, p in enumerate(confidences) if (m - 1) / 15 < p <= m / 15 or (m == 1 and p == 0)]
        if own:
            accuracy = sum(is_right[i] for i in own) / len(own)
            total += len(own) / len(confidences) * abs(accuracy - sum(confidences[i] for i in own) / len(own))
    return total


CONFIDENCE = st.one_of(st.floats(0, 1), st.integers(0, 15).map(lambda k: k / 15))  # edges, too


@given(st.lists(st.tuples(CONFIDENCE, st.booleans()), min_size=1, max_size=60))
def test_the_calibration_error_is_its_definition(rows: list[tuple[float, bool]]) -> None:
    confidences, is_right = [row[0] for row in rows], [row[1] for row in rows]
    found = expected_calibration_error(confidences, is_right)
    assert found == pytest.approx(error_by_definition(confidences, is_right), **EXACT)


def test_the_calibration_error_of_known_models() -> None:
    # Always sure and always wrong; always sure and always right; sure to 0.8 and right in four of five.
    sure = np.array([[50.0, 0.0]] * 10)
    assert single_label_metrics(sure, [1] * 10)[names.EVAL_ECE] == pytest.approx(1.0)
    assert single_label_metrics(sure, [0] * 10)[names.EVAL_ECE] == pytest.approx(0.0, abs=1e-12)
    measured = np.log([[0.8, 0.2]] * 5)
    assert single_label_metrics(measured, [0, 0, 1, 0, 0])[names.EVAL_ECE] == pytest.approx(0.0, abs=1e-12)


@given(st.integers(1, 4), st.integers(1, 30), st.integers(0, 2**32), st.floats(-3, 3))
def test_several_labels_are_judged_as_by_scikit_learn(n_classes: int, n_rows: int, seed: int, shift: float) -> None:
    random = np.random.default_rng(seed)
    logits = random.normal(size=(n_rows, n_classes)) + shift
    labels = random.integers(0, 2, (n_rows, n_classes))
    labels[:, 0] = 0  # and with few rows also classes that are predicted nowhere
    found, predicted = multi_label_metrics(logits, labels), (logits > 0).astype(int)
    if n_classes > 1:  # scikit-learn takes one column for a single label
        for name, average in ((names.EVAL_MICRO_F1, "micro"), (names.EVAL_MACRO_F1, "macro")):
            expected = f1_score(labels, predicted, average=average, zero_division=np.nan)
            assert found[name] == pytest.approx(expected, **EXACT, nan_ok=True)
    assert found[names.EVAL_SUBSET_ACCURACY] == pytest.approx((labels == predicted).all(axis=1).mean(), **EXACT)


def test_a_class_that_is_nowhere_does_not_count() -> None:
    logits = np.eye(5)[[0, 0, 1, 1]]
    assert single_label_metrics(logits, [0, 0, 1, 1])[names.EVAL_MACRO_F1] == 1.0
    assert multi_label_metrics([[-1.0, -1.0]], [[0, 0]]) == {
        names.EVAL_MICRO_F1: pytest.approx(math.nan, nan_ok=True),
        names.EVAL_MACRO_F1: pytest.approx(math.nan, nan_ok=True),
        names.EVAL_SUBSET_ACCURACY: 1.0,
    }


def test_one_class_is_no_error() -> None:
    found = single_label_metrics([[0.3], [-0.2]], [0, 0])
    assert found == {names.EVAL_ACCURACY: 1.0, names.EVAL_MACRO_F1: 1.0, names.EVAL_ECE: 0.0}


def test_of_nothing_nothing_is_known() -> None:
    assert all(map(math.isnan, single_label_metrics(np.zeros((0, 3)), []).values()))
    assert all(map(math.isnan, multi_label_metrics(np.zeros((0, 3)), np.zeros((0, 3))).values()))


def test_huge_logits_of_any_type_are_probabilities_still() -> None:
    logits = torch.tensor([[3e38, 0.0], [0.0, 3e38]])
    assert single_label_metrics(logits, torch.tensor([0, 1])) == {
        names.EVAL_ACCURACY: 1.0,
        names.EVAL_MACRO_F1: 1.0,
        names.EVAL_ECE: 0.0,
    }


def test_a_diverged_model_is_not_called_calibrated() -> None:
    assert math.isnan(single_label_metrics([[math.nan, 0.0], [1.0, 0.0]], [0, 0])[names.EVAL_ECE])
