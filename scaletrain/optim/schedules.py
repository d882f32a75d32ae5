"""Learning-rate schedules: pure functions of the step."""

import math

from scaletrain.config.schema import OptimConfig


def learning_rate(optim: OptimConfig, step: int, decay_steps: int) -> float:
    """Learning rate with which global batch ``step`` is applied.

    Every schedule rises linearly over ``warmup_steps`` first: step 0 gets ``lr / warmup_steps``, step
    ``warmup_steps - 1`` the full rate. All but range_test never rise again.

    Args:
        optim: Names the schedule and its parameters.
        step: Global batch, counted from 0.
        decay_steps: Step at which linear, cosine and wsd reach ``min_lr_ratio * lr``, and range_test, which begins
            there, ``lr``; they stay there.

    Returns:
        The rate, a positive number of at most ``optim.lr``; linear, cosine and wsd return 0 at their
        end where ``min_lr_ratio`` is 0.

    Source:
        cosine: Loshchilov and Hutter 2017 (arXiv 1608.03983), without restarts. inverse_sqrt: Vaswani et al.
        2017 (arXiv 1706.03762), section 5.3, scaled so that its peak is ``lr``. wsd: Hu et al. 2024
        (arXiv 2404.06395), with a linear cooldown as in Hägele et al. 2024 (arXiv 2405.18392). range_test: Smith 2015
        (arXiv 1506.01186), section 3.3, but exponential, so that each order of magnitude gets as many steps.
    """
    warmup = optim.warmup_steps
    if step < warmup:
        return optim.lr * (step + 1) / warmup
    return optim.lr * _SHAPES[optim.schedule](optim, step, max(decay_steps, warmup + 1))


def _progress(start: float, step: int, end: float) -> float:
    return min(1.0, max(0.0, (step - start) / (end - start)))


def _constant(optim: OptimConfig, step: int, decay_steps: int) -> float:
    return 1.0


def _linear(optim: OptimConfig, step: int, decay_steps: int) -> float:
    return 1.0 - (1.0 - optim.min_lr_ratio) * _progress(optim.warmup_steps, step, decay_steps)


def _cosine(optim: OptimConfig, step: int, decay_steps: int) -> float:
    wave = 0.5 * (1.0 + math.cos(math.pi * _progress(optim.warmup_steps, step, decay_steps)))
    return optim.min_lr_ratio + (1.0 - optim.min_lr_ratio) * wave


def _wsd(optim: OptimConfig, step: int, decay_steps: int) -> float:
    start = max(optim.warmup_steps, decay_steps - optim.cooldown_ratio * decay_steps)
    return 1.0 - (1.0 - optim.min_lr_ratio) * _progress(start, step, decay_steps)


def _inverse_sqrt(optim: OptimConfig, step: int, decay_steps: int) -> float:
    return math.sqrt(max(1, optim.warmup_steps) / (step + 1))


def _step(optim: OptimConfig, step: int, decay_steps: int) -> float:
    return float(optim.step_factor ** ((step - optim.warmup_steps) // optim.step_every_steps))


def _range_test(optim: OptimConfig, step: int, decay_steps: int) -> float:
    return float(optim.min_lr_ratio ** (1.0 - _progress(optim.warmup_steps, step, decay_steps)))


_SHAPES = {
    "constant": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "wsd": _wsd,
    "inverse_sqrt": _inverse_sqrt,
    "step": _step,
    "range_test": _range_test,
}
