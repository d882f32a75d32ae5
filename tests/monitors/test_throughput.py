"""Rates of a run whose clock the test turns by hand, and a rate that is really measured."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scaletrain.monitors.throughput import Throughput, measure_matmul_flops_per_s


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def run_steps(throughput: Throughput, clock: Clock, count: int, wait_s: float, work_s: float, tokens: int) -> None:
    for _ in range(count):
        throughput.start_step()
        clock.now_s += wait_s
        throughput.data_ready()
        clock.now_s += work_s
        throughput.end_step(tokens)


def test_rates_leave_out_the_first_step_and_what_lies_between_steps() -> None:
    clock = Clock()
    throughput = Throughput(flops_per_token=6e6, peak_flops_per_s=1e10, world_size=2, clock=clock)
    run_steps(throughput, clock, 1, wait_s=5.0, work_s=60.0, tokens=1000)
    assert throughput.metrics()["perf/step_time_s"] == pytest.approx(65.0)
    run_steps(throughput, clock, 2, wait_s=0.5, work_s=1.5, tokens=1000)
    clock.now_s += 40.0  # an evaluation
    run_steps(throughput, clock, 1, wait_s=0.1, work_s=1.9, tokens=1000)
    assert throughput.metrics() == pytest.approx(
        {
            "perf/step_time_s": 2.0,
            "perf/data_wait_s": 0.1,
            "perf/tokens_per_s": 500.0,
            "perf/mfu": 500.0 * 6e6 / (2 * 1e10),
        }
    )
    # The rest needs as much evaluation per step as there was so far.
    assert throughput.time_left_s(remaining_steps=8) == pytest.approx(8 * (2.0 + 40.0 / 4))


@given(window_steps=st.integers(1, 10), slow=st.integers(2, 30), fast=st.integers(1, 30))
def test_only_the_window_counts(window_steps: int, slow: int, fast: int) -> None:
    clock = Clock()
    throughput = Throughput(1.0, None, 1, window_steps=window_steps, clock=clock)
    run_steps(throughput, clock, slow, wait_s=0.0, work_s=4.0, tokens=64)
    run_steps(throughput, clock, fast, wait_s=0.0, work_s=1.0, tokens=64)
    in_window = min(window_steps, slow - 1 + fast)
    fast_in_window = min(fast, in_window)
    seconds = fast_in_window + 4.0 * (in_window - fast_in_window)
    assert throughput.tokens_per_s == pytest.approx(64 * in_window / seconds)


def test_before_the_first_step_and_without_a_peak_nothing_is_made_up() -> None:
    clock = Clock()
    throughput = Throughput(6e6, peak_flops_per_s=None, world_size=1, clock=clock)
    assert throughput.metrics() == {}
    assert throughput.time_left_s(10) is None
    run_steps(throughput, clock, 1, wait_s=0.0, work_s=1.0, tokens=8)
    assert throughput.mfu is None
    assert "perf/mfu" not in throughput.metrics()


def test_a_matmul_is_measured_without_touching_the_random_numbers_of_the_run() -> None:
    state = torch.get_rng_state()
    rate = measure_matmul_flops_per_s("fp32", seconds=0.05, size=256)
    assert torch.equal(state, torch.get_rng_state())
    # Between a very old core and a very large CPU.
    assert 1e8 < rate < 1e14
    assert measure_matmul_flops_per_s("bf16", seconds=0.05, size=128) > 1e7
