"""Figures of regression are those of scikit-learn and scipy."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

from scaletrain.evaluation.regression import regression_metrics
from scaletrain.monitors import names

# Few different values, so that there are ties, and numbers of any size beside each other.
NUMBER = st.one_of(st.integers(-3, 3).map(float), st.floats(-1e6, 1e6))
PAIRS = st.lists(st.tuples(NUMBER, NUMBER), min_size=2, max_size=40)


@given(PAIRS)
def test_errors_and_ranks_are_the_libraries(pairs: list[tuple[float, float]]) -> None:
    predicted, targets = np.array(pairs).T
    found = regression_metrics(predicted, targets)
    assert found[names.EVAL_MSE] == pytest.approx(mean_squared_error(targets, predicted), rel=1e-12)
    assert found[names.EVAL_MAE] == pytest.approx(mean_absolute_error(targets, predicted), rel=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constant input: NaN, as here
        rank_correlation = float(spearmanr(predicted, targets).statistic)
    assert found[names.EVAL_SPEARMAN] == pytest.approx(rank_correlation, abs=1e-12, nan_ok=True)


@given(st.integers(2, 60), st.integers(0, 2**32), st.sampled_from([1e-200, 1e-3, 1.0, 1e150]), st.floats(-5, 5))
def test_correlation_and_r2_are_the_libraries(n_rows: int, seed: int, scale: float, slope: float) -> None:
    random = np.random.default_rng(seed)
    targets = random.normal(size=n_rows)
    predicted = slope * targets + random.normal(size=n_rows)
    found = regression_metrics(scale * predicted, targets)
    assert found[names.EVAL_PEARSON] == pytest.approx(pearsonr(predicted, targets).statistic, abs=1e-9)
    unscaled = regression_metrics(predicted, targets)
    assert unscaled[names.EVAL_R2] == pytest.approx(r2_score(targets, predicted), rel=1e-9, abs=1e-12)


def test_a_constant_has_no_correlation() -> None:
    found = regression_metrics([2.0, 2.0, 2.0], [1.0, 2.0, 3.0])
    assert math.isnan(found[names.EVAL_PEARSON]) and math.isnan(found[names.EVAL_SPEARMAN])
    assert found[names.EVAL_R2] == 0.0  # as good as the mean
    assert math.isnan(regression_metrics([1.0, 2.0], [5.0, 5.0])[names.EVAL_R2])


@pytest.mark.parametrize("shape", [(0,), (0, 2)])
def test_of_nothing_nothing_is_known(shape: tuple[int, ...]) -> None:
    assert all(map(math.isnan, regression_metrics(np.zeros(shape), np.zeros(shape)).values()))


def test_one_example_has_an_error_and_no_correlation() -> None:
    found = regression_metrics([1.0], [3.0])
    assert (found[names.EVAL_MSE], found[names.EVAL_MAE]) == (4.0, 2.0)
    assert all(math.isnan(found[name]) for name in (names.EVAL_PEARSON, names.EVAL_SPEARMAN, names.EVAL_R2))


def test_several_numbers_are_judged_one_by_one() -> None:
    random = torch.Generator().manual_seed(0)
    predicted, targets = torch.randn(20, 3, generator=random), torch.randn(20, 3, generator=random)
    found = regression_metrics(predicted, targets)
    singles = [regression_metrics(predicted[:, m], targets[:, m]) for m in range(3)]
    assert found == {name: pytest.approx(sum(one[name] for one in singles) / 3) for name in found}


def test_a_diverged_model_has_no_figures() -> None:
    assert all(map(math.isnan, regression_metrics([math.nan, 1.0, 2.0], [1.0, 2.0, 3.0]).values()))
