"""Figures of regression, exact over a whole set: whoever calls has gathered the rows of all ranks.

Shapes: B examples, M numbers of each example.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scaletrain.monitors import names

Column = NDArray[np.float64]


def regression_metrics(predicted: ArrayLike, targets: ArrayLike) -> dict[str, float]:
    """Judges predicted numbers; of several numbers for each example each figure is the mean of theirs.

    A correlation and R2 compare with how far the numbers are spread: where they are all the same these are not defined.

    Args:
        predicted: Predictions, (B,) or (B, M), of any floating type.
        targets: The right numbers, of the same shape.

    Returns:
        ``eval/mse`` and ``eval/mae`` in the units of the targets (squared, and as they are), ``eval/pearson`` and
        ``eval/spearman`` from -1 to 1, and ``eval/r2`` of at most 1; NaN where a figure is not defined, and of an empty
        set.

    Source:
        Spearman: Pearson's correlation of the ranks, equal values having the mean of their ranks. R2: 1 minus the
        squared error as a share of that of the targets' own mean.
    """
    of_each = [_of_one(*pair) for pair in zip(_columns(predicted), _columns(targets), strict=True)]
    return {name: math.fsum(one[name] for one in of_each) / len(of_each) for name in of_each[0]}


def _columns(values: ArrayLike) -> list[Column]:
    array = np.asarray(values, dtype=np.float64)
    return list(array.T) if array.ndim == 2 else [array]


def _of_one(predicted_B: Column, targets_B: Column) -> dict[str, float]:
    is_empty = not targets_B.size
    error_B = predicted_B - targets_B
    return {
        names.EVAL_MSE: math.nan if is_empty else float(np.square(error_B).mean()),
        names.EVAL_MAE: math.nan if is_empty else float(np.abs(error_B).mean()),
        names.EVAL_PEARSON: _correlation(predicted_B, targets_B),
        names.EVAL_SPEARMAN: _correlation(_ranks(predicted_B), _ranks(targets_B)),
        names.EVAL_R2: _r2(error_B, targets_B),
    }


def _correlation(left_B: Column, right_B: Column) -> float:
    if _is_constant(left_B) or _is_constant(right_B):
        return math.nan
    return float(np.clip(np.dot(_direction(left_B), _direction(right_B)), -1.0, 1.0))


def _direction(values_B: Column) -> Column:
    """How the values differ from their mean, at length 1."""
    apart_B = values_B - values_B.mean()
    apart_B = apart_B / np.abs(apart_B).max()  # squares of tiny or huge numbers would leave the range of floats
    return np.asarray(apart_B / np.linalg.norm(apart_B))


def _r2(error_B: Column, targets_B: Column) -> float:
    if _is_constant(targets_B):
        return math.nan
    return float(1.0 - np.square(error_B).sum() / np.square(targets_B - targets_B.mean()).sum())


def _ranks(values_B: Column) -> Column:
    """Places in ascending order, from 1; equal values have the mean of their places. What is not finite has none."""
    if not np.isfinite(values_B).all():
        return np.full(values_B.shape, math.nan)
    _, group_B, sizes = np.unique(values_B, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(sizes) - (sizes - 1) / 2)[group_B])


def _is_constant(values_B: Column) -> bool:
    return not values_B.size or bool(values_B.min() == values_B.max())
