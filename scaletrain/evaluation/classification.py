"""Figures of classification, exact over a whole set: whoever calls has gathered the rows of all ranks.

Shapes: B examples, C classes, K bins.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scaletrain.monitors import names

_BINS = 15


def single_label_metrics(logits_BC: ArrayLike, labels_B: ArrayLike) -> dict[str, float]:
    """Judges predictions of one class for each example.

    The mean F1 is over the classes that occur, as labels or as predictions: a class of which nothing is known has none.

    Args:
        logits_BC: Logits of the classes, of any floating type.
        labels_B: Numbers of the right classes, 0 to C - 1.

    Returns:
        ``eval/accuracy``, ``eval/macro_f1`` and ``eval/ece``, each 0 to 1; NaN of an empty set.
    """
    logits_BC, labels_B = np.asarray(logits_BC, dtype=np.float64), np.asarray(labels_B, dtype=np.int64)
    if not labels_B.size:
        return dict.fromkeys((names.EVAL_ACCURACY, names.EVAL_MACRO_F1, names.EVAL_ECE), math.nan)
    predicted_B = logits_BC.argmax(axis=1)
    counts_CC = confusion_counts(predicted_B, labels_B, logits_BC.shape[1])
    right_C = counts_CC.diagonal()
    return {
        names.EVAL_ACCURACY: float(right_C.sum() / labels_B.size),
        names.EVAL_MACRO_F1: _mean_known(_f1(right_C, counts_CC.sum(axis=0) + counts_CC.sum(axis=1))),
        names.EVAL_ECE: expected_calibration_error(_softmax(logits_BC).max(axis=1), predicted_B == labels_B),
    }


def multi_label_metrics(logits_BC: ArrayLike, labels_BC: ArrayLike) -> dict[str, float]:
    """Judges predictions of any number of classes for each example.

    A class is predicted where its probability is above one half, that is where its logit is above 0. A class that is
    neither a label nor predicted anywhere has no F1, and is left out of the mean.

    Args:
        logits_BC: Logits of the classes, of any floating type.
        labels_BC: 1 where an example is of a class, 0 elsewhere.

    Returns:
        ``eval/micro_f1``, ``eval/macro_f1`` and ``eval/subset_accuracy`` (the share of examples with all classes
        right), each 0 to 1; NaN where there is nothing to tell it from.
    """
    predicted_BC, is_label_BC = np.asarray(logits_BC, dtype=np.float64) > 0, np.asarray(labels_BC) > 0.5
    right_C = (predicted_BC & is_label_BC).sum(axis=0)
    named_C = predicted_BC.sum(axis=0) + is_label_BC.sum(axis=0)
    exact_B = (predicted_BC == is_label_BC).all(axis=1)
    return {
        names.EVAL_MICRO_F1: float(_f1(right_C.sum(keepdims=True), named_C.sum(keepdims=True))[0]),
        names.EVAL_MACRO_F1: _mean_known(_f1(right_C, named_C)),
        names.EVAL_SUBSET_ACCURACY: float(exact_B.mean()) if exact_B.size else math.nan,
    }


def confusion_counts(predicted_B: ArrayLike, labels_B: ArrayLike, n_classes: int) -> NDArray[np.int64]:
    """Counts which class was taken for which.

    Args:
        predicted_B: Numbers of the predicted classes.
        labels_B: Numbers of the right classes.
        n_classes: C, the number of classes.

    Returns:
        Examples by right class (rows) and predicted class (columns), (C, C).
    """
    cells_B = np.asarray(labels_B, dtype=np.int64) * n_classes + np.asarray(predicted_B, dtype=np.int64)
    return np.bincount(cells_B, minlength=n_classes**2).reshape(n_classes, n_classes)


def expected_calibration_error(confidences_B: ArrayLike, is_right_B: ArrayLike) -> float:
    """How far a model's confidence is from the share of its predictions that are right.

    Args:
        confidences_B: Probability of each predicted class, 0 to 1.
        is_right_B: Whether each prediction is right.

    Returns:
        The mean distance, 0 to 1, over 15 bins of equal width weighted by their examples; NaN of an empty set.

    Source:
        Guo et al. 2017, "On Calibration of Modern Neural Networks" (arXiv 1706.04599), section 2: bin k holds the
        confidences above (k - 1) / 15 and at most k / 15.
    """
    confidences_B = np.asarray(confidences_B, dtype=np.float64)
    if not confidences_B.size:
        return math.nan
    # The edges as numbers, not confidence times 15: a product may be rounded over the edge it stands on.
    edges_K = np.arange(1, _BINS) / _BINS
    bin_B = np.searchsorted(edges_K, confidences_B, side="left")
    excess_K = np.bincount(bin_B, weights=confidences_B - np.asarray(is_right_B, dtype=np.float64), minlength=_BINS)
    return float(np.abs(excess_K).sum() / confidences_B.size)


def _f1(right_C: NDArray[np.int64], named_C: NDArray[np.int64]) -> NDArray[np.float64]:
    """F1 from the hits, and from labels and predictions counted together; NaN where there are none of these."""
    f1_C = np.full(right_C.shape, math.nan)
    np.divide(2.0 * right_C, named_C, out=f1_C, where=named_C > 0)
    return f1_C


def _mean_known(values_C: NDArray[np.float64]) -> float:
    known = values_C[~np.isnan(values_C)]
    return float(known.mean()) if known.size else math.nan


def _softmax(logits_BC: NDArray[np.float64]) -> NDArray[np.float64]:
    shares_BC = np.exp(logits_BC - logits_BC.max(axis=1, keepdims=True))
    return np.asarray(shares_BC / shares_BC.sum(axis=1, keepdims=True))
