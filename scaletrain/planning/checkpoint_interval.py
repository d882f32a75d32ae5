"""How often to save: what the formulas of Young, Daly and others say, and what an interval costs.

An interval is the training time between two saves, the time in which training stands still for a save left out.
"""

import math


def young_s(stall_s: float, failure_s: float) -> float:
    """The interval by Young's first-order formula, T = sqrt(2 δ M).

    Source: J. W. Young, "A first order approximation to the optimum checkpoint interval", Communications of the ACM
    17(9), 1974.

    Args:
        stall_s: δ, how long training stands still for a save.
        failure_s: M, mean time between failures.

    Returns:
        Seconds of training between saves.
    """
    return math.sqrt(2 * stall_s * failure_s)


def daly_s(stall_s: float, failure_s: float) -> float:
    """The interval by Daly's higher-order formula.

    T = sqrt(2 δ M) [1 + 1/3 sqrt(δ / 2M) + 1/9 (δ / 2M)] - δ for δ < 2M, else M.

    Source: J. T. Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps", Future
    Generation Computer Systems 22(3), 2006.

    Args:
        stall_s: δ, how long training stands still for a save.
        failure_s: M, mean time between failures.

    Returns:
        Seconds of training between saves.
    """
    if stall_s >= 2 * failure_s:
        return failure_s
    ratio = stall_s / (2 * failure_s)
    return young_s(stall_s, failure_s) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - stall_s


def with_recovery_s(stall_s: float, failure_s: float, recovery_s: float) -> float:
    """The interval where the time to recover counts, Ts + sqrt(2 (Tf + Tr) Ts + Ts²) from one save to the next.

    The source counts the save itself in; here it is taken off, as in the other formulas.

    Source: arXiv 2410.18124.

    Args:
        stall_s: Ts, how long training stands still for a save.
        failure_s: Tf, mean time between failures.
        recovery_s: Tr, mean time from a failure until training goes on.

    Returns:
        Seconds of training between saves.
    """
    return math.sqrt(2 * (failure_s + recovery_s) * stall_s + stall_s**2)


def cost_share(interval_s: float, stall_s: float, failure_s: float, recovery_s: float) -> float:
    """The share of time that goes into saving, recovering and training again what was lost.

    Failures come at random, at a constant rate, also while a save or a recovery is under way: training for T takes
    M exp(R/M) (exp((T+δ)/M) - 1) on average.

    Source: Daly 2006, as for ``daly_s``, the model whose minimum that formula estimates.

    Args:
        interval_s: T, training time between saves; more than 0.
        stall_s: δ, how long training stands still for a save.
        failure_s: M, mean time between failures.
        recovery_s: R, mean time from a failure until training goes on.

    Returns:
        0 to 1.
    """
    # As logarithms: long intervals would overflow, and cost everything.
    cycle = (interval_s + stall_s) / failure_s
    log_growth = cycle + math.log(-math.expm1(-cycle))
    return -math.expm1(math.log(interval_s / failure_s) - log_growth - recovery_s / failure_s)


def failure_bound_s(up_s: float) -> float:
    """What the mean time between failures is at least, with 95 % confidence, after a time without any failure.

    Source: J. A. Hanley and A. Lippman-Hand, "If nothing goes wrong, is everything all right?", JAMA 249(13), 1983:
    the rule of three.

    Args:
        up_s: Time without a failure.

    Returns:
        Seconds.
    """
    return up_s / -math.log(0.05)
