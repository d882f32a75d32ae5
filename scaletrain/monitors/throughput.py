"""How fast the run is, and which share of the hardware's arithmetic it uses."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from scaletrain.monitors import names

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class _StepTiming:
    tokens: int
    data_wait_s: float
    step_time_s: float


class Throughput:
    """Times the steps of a run.

    The loop calls ``start_step``, ``data_ready`` and ``end_step`` in each step. What happens between a step's end and
    the next one's start (evaluation, saving, generating) is no part of the rates, only of the time left. On a GPU the
    loop has to wait for the step's result before ``end_step``, otherwise only the launching of kernels is timed.

    The first step of an attempt compiles and allocates: it counts only until there is a second one.

    Args:
        flops_per_token: Floating-point operations of forward and backward for one token.
        peak_flops_per_s: Highest rate of one rank's device; None leaves MFU out.
        world_size: Number of ranks.
        window_steps: How many of the last steps the rates are taken over.
        clock: Source of time in seconds.
    """

    def __init__(
        self,
        flops_per_token: float,
        peak_flops_per_s: float | None,
        world_size: int,
        window_steps: int = 20,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._flops_per_token = flops_per_token
        self._peak_flops_per_s = None if peak_flops_per_s is None else peak_flops_per_s * world_size
        self._window: deque[_StepTiming] = deque(maxlen=window_steps)
        self._clock = clock
        self._steps = 0
        self._start = self._ready = self._end = clock()
        self._between_s = 0.0

    def start_step(self) -> None:
        """Marks the moment from which the step waits for its data."""
        self._start = self._ready = self._clock()
        if self._steps:
            self._between_s += self._start - self._end

    def data_ready(self) -> None:
        """Marks the moment at which the step's data is there."""
        self._ready = self._clock()

    def end_step(self, tokens: int) -> None:
        """Marks the end of the step.

        Args:
            tokens: Tokens of the global batch, over all ranks, without filling.
        """
        self._end = self._clock()
        if self._steps == 1:
            self._window.clear()
        self._window.append(_StepTiming(tokens, self._ready - self._start, self._end - self._start))
        self._steps += 1

    @property
    def tokens_per_s(self) -> float:
        """Tokens of all ranks per second over the window; 0 before the first step."""
        seconds = sum(timing.step_time_s for timing in self._window)
        return sum(timing.tokens for timing in self._window) / seconds if seconds > 0 else 0.0

    @property
    def mfu(self) -> float | None:
        """Model FLOP utilization over the window, 0 to 1; None where the peak is not known.

        Source: Chowdhery et al., "PaLM", 2022, appendix B: recomputed activations do not count.
        """
        if self._peak_flops_per_s is None:
            return None
        return self.tokens_per_s * self._flops_per_token / self._peak_flops_per_s

    def metrics(self) -> dict[str, float]:
        """Gives the last step's times, and the rates over the window.

        Returns:
            ``perf/step_time_s``, ``perf/data_wait_s``, ``perf/tokens_per_s`` and, where the peak is known,
            ``perf/mfu``; nothing before the first step.
        """
        if not self._window:
            return {}
        last = self._window[-1]
        values = {
            names.PERF_STEP_TIME_S: last.step_time_s,
            names.PERF_DATA_WAIT_S: last.data_wait_s,
            names.PERF_TOKENS_PER_S: self.tokens_per_s,
        }
        mfu = self.mfu
        return values if mfu is None else values | {names.PERF_MFU: mfu}

    def time_left_s(self, remaining_steps: int) -> float | None:
        """Estimates how long the rest of the run takes, evaluation and saving included.

        Args:
            remaining_steps: Steps to do.

        Returns:
            Seconds; None before the first step.
        """
        if not self._window:
            return None
        step_s = sum(timing.step_time_s for timing in self._window) / len(self._window)
        return remaining_steps * (step_s + self._between_s / self._steps)


def measure_matmul_flops_per_s(
    precision: Literal["fp32", "bf16", "fp16"],
    seconds: float = 0.3,
    device: str = "cpu",
    size: int | None = None,
) -> float:
    """Measures the rate of square matrix products, the peak of a device that no table knows.

    On a CPU it is the rate of this process's threads: where several ranks share a machine, all of them have to measure
    at the same time.

    Args:
        precision: Arithmetic of the products.
        seconds: How long to measure; at least three products are made.
        device: Where to measure, such as "cpu" or "cuda:0".
        size: Rows and columns of the matrices; by default 512 or, for many threads, 1024 on a CPU, 8192 elsewhere.

    Returns:
        FLOP/s of the fastest product.
    """
    place = torch.device(device)
    n = size or (_cpu_size() if place.type == "cpu" else 8192)
    # torch's global generator is left alone: measuring must not change the run's random numbers.
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, n, generator=generator).to(place, _DTYPES[precision]) for _ in range(2))
    out = torch.mm(a, b)
    _finish(place)
    fastest_s = float("inf")
    products = 0
    deadline_s = time.perf_counter() + seconds
    while products < 3 or time.perf_counter() < deadline_s:
        start_s = time.perf_counter()
        torch.mm(a, b, out=out)
        _finish(place)
        fastest_s = min(fastest_s, time.perf_counter() - start_s)
        products += 1
    return 2 * n**3 / fastest_s


def _cpu_size() -> int:
    """A product of few threads has to fit between two turns of whatever else runs, or none that is measured does."""
    return 512 if torch.get_num_threads() <= 4 else 1024


def _finish(device: torch.device) -> None:
    """Waits until the device has done its work; a CPU has when the call returns."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
