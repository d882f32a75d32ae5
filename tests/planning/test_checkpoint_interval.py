import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaletrain.planning.checkpoint_interval import cost_share, daly_s, failure_bound_s, with_recovery_s, young_s

stalls_s = st.floats(0.01, 1000)
failures_s = st.floats(10, 1e7)


def minimum(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function with one minimum has it, by ternary search on a logarithmic scale."""
    low, high = math.log(low), math.log(high)
    for _ in range(200):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, right) if function(math.exp(left)) < function(math.exp(right)) else (left, high)
    return math.exp((low + high) / 2)


def test_published_examples() -> None:
    # A save of five minutes and a failure a day.
    assert young_s(300, 86400) == pytest.approx(7200)
    assert daly_s(300, 86400) == pytest.approx(7200 * (1 + math.sqrt(1 / 576) / 3 + 1 / 5184) - 300)
    assert daly_s(200, 100) == 100


@given(stalls_s, failures_s, st.floats(0, 1e4))
def test_the_model_is_cheapest_about_where_daly_says(stall_s: float, failure_s: float, recovery_s: float) -> None:
    if stall_s < failure_s / 2:
        best_s = minimum(
            lambda interval_s: cost_share(interval_s, stall_s, failure_s, 0.0), stall_s / 100, 100 * failure_s
        )
        # Daly's series is within 5 % here; Young's formula is not.
        assert daly_s(stall_s, failure_s) == pytest.approx(best_s, rel=0.05)
        least = cost_share(best_s, stall_s, failure_s, recovery_s)
        for other_s in (best_s / 2, best_s * 2):
            assert cost_share(other_s, stall_s, failure_s, recovery_s) >= least


@given(stalls_s, failures_s, st.floats(0, 1e4))
def test_the_formula_with_recovery_is_cheapest_in_its_own_model(
    stall_s: float, failure_s: float, recovery_s: float
) -> None:
    def time_for_each_trained_second(interval_s: float) -> float:
        period_s = interval_s + stall_s
        return period_s * (failure_s + recovery_s + period_s / 2) / interval_s

    best_s = minimum(time_for_each_trained_second, stall_s / 100, 1e9)
    assert with_recovery_s(stall_s, failure_s, recovery_s) == pytest.approx(best_s, rel=1e-3)


@given(st.floats(1e-3, 1e9), st.floats(0, 1e6), st.floats(1e-3, 1e9), st.floats(0, 1e6))
def test_a_cost_is_a_share(interval_s: float, stall_s: float, failure_s: float, recovery_s: float) -> None:
    assert 0 <= cost_share(interval_s, stall_s, failure_s, recovery_s) <= 1


def test_rare_failures_cost_the_save_and_half_an_interval() -> None:
    # To first order: δ/(T+δ) for the save, and (T+δ)/2M for what is trained again, and R/M.
    assert cost_share(1000, 10, 1e6, 500) == pytest.approx(10 / 1010 + 1010 / 2e6 + 500 / 1e6, rel=0.01)


def test_the_bound_is_what_would_have_failed_in_nineteen_of_twenty_cases() -> None:
    assert math.exp(-3600 / failure_bound_s(3600)) == pytest.approx(0.05)
    assert failure_bound_s(3600) == pytest.approx(1200, rel=0.01)
