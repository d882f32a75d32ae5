"""What counts as computing: work does, waiting does not."""

import math
import time

import pytest
import torch

from scaletrain.engine.compute_clock import ComputeClock, open_clock


def work(device: str, products: int) -> None:
    square = torch.ones(256, 256, device=device)
    for _ in range(products):
        square = square @ square / 256


def step(clock: ComputeClock, device: str, products: int, waits_s: float = 0.0) -> float:
    """A step of two forward passes, each followed by a wait."""
    clock.begin_step()
    for _ in range(2):
        clock.begin_forward()
        work(device, products)
        clock.end_forward()
        time.sleep(waits_s)
    clock.end_step()
    return clock.read_s()


def test_on_a_cpu_waiting_takes_no_time() -> None:
    clock = open_clock(torch.device("cpu"), 2)
    step(clock, "cpu", 1)
    little, much = (min(step(clock, "cpu", products) for _ in range(5)) for products in (20, 80))
    assert 0 < 2 * little < much
    assert step(clock, "cpu", 1, waits_s=0.5) < 0.5


@pytest.mark.gpu
def test_on_a_gpu_what_follows_the_forward_passes_takes_no_time() -> None:
    clock = open_clock(torch.device("cuda"), 2)
    for products in (20, 80):
        step(clock, "cuda", products)
        torch.cuda.synchronize()
    many = clock.read_s()
    step(clock, "cuda", 80, waits_s=0.5)
    torch.cuda.synchronize()
    assert 0 < many < 0.5 and 0 < clock.read_s() < 0.5


def test_where_a_forward_pass_waits_nothing_is_told() -> None:
    assert math.isnan(step(open_clock(torch.device("cuda"), 3), "cpu", 1))
