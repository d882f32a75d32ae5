"""Compares runs: what differs between their settings, and how they came out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from statistics import fmean, median
from types import MappingProxyType
from typing import Any

from scaletrain.errors import ConfigError
from scaletrain.monitors import names
from scaletrain.monitors.jsonl_writer import read_metrics
from scaletrain.monitors.run_records import number
from scaletrain.monitors.status import NO_START, Status
from scaletrain.monitors.status_records import observe, read_config
from scaletrain.monitors.status_warnings import status_of

LAST_SHARE = 100
LEAST_STEPS = 10
_PLACES = ("run_dir",)
_READ = (names.TRAIN_LOSS, names.EVAL_LOSS, names.PERF_TOKENS_PER_S, names.PERF_MFU)

Curve = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Compared:
    """One run of several.

    Attributes:
        name: Of its folder.
        settings: Its values of what differs between the runs.
        state: As in ``Status``.
        reason: Why it ended.
        step: Last step done; 0 before the first.
        max_steps: Steps of the whole run; None where its configuration cannot be read.
        loss: Mean training loss of the last hundredth of its steps, of ten at least; None without a step.
        best_loss: Lowest mean of as many steps in a row.
        common_loss: As ``loss``, up to the comparison's common step.
        eval_loss: Last validation loss.
        common_eval_loss: Validation loss at the comparison's common step of evaluation.
        tokens_per_s: Median speed.
        mfu: Median share of the peak, 0 to 1.
        goodput: Productive share of the wall time, 0 to 1.
    """

    name: str
    settings: Mapping[str, Any]
    state: str
    reason: str
    step: int
    max_steps: int | None
    loss: float | None = None
    best_loss: float | None = None
    common_loss: float | None = None
    eval_loss: float | None = None
    common_eval_loss: float | None = None
    tokens_per_s: float | None = None
    mfu: float | None = None
    goodput: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Several runs.

    Attributes:
        runs: The runs, sorted.
        keys: Keys of the settings that differ.
        common_step: Largest step that all runs with a loss have reached; 0 where none has.
        common_eval_step: Largest step at which all of them that evaluate have done so; 0 where there is none.
        without_run: Names of folders that hold no run.
    """

    runs: tuple[Compared, ...]
    keys: tuple[str, ...]
    common_step: int
    common_eval_step: int
    without_run: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Measured:
    """What a run has measured."""

    status: Status
    settings: Mapping[str, Any]
    losses: Curve
    evaluations: Curve
    tokens_per_s: float | None
    mfu: float | None


SORTS: Mapping[str, Callable[[Compared], tuple[Any, ...]]] = MappingProxyType(
    {
        names.EVAL_LOSS: lambda run: _up(run.common_eval_loss) + _up(run.eval_loss) + _up(run.common_loss),
        names.TRAIN_LOSS: lambda run: _up(run.common_loss) + _up(run.loss),
        names.PERF_TOKENS_PER_S: lambda run: _down(run.tokens_per_s),
        names.PERF_MFU: lambda run: _down(run.mfu),
        "goodput": lambda run: _down(run.goodput),
        "step": lambda run: _down(run.step),
        "name": lambda run: (run.name,),
    }
)
"""What runs can be sorted by, the best first."""


def compare(run_dirs: Sequence[Path], sort: str = names.EVAL_LOSS) -> Comparison:
    """Compares runs.

    Args:
        run_dirs: Their folders.
        sort: One of ``SORTS``. Losses are compared at a step that all runs have reached, where there is one.

    Returns:
        The comparison.

    Raises:
        ConfigError: None of the folders holds a run, or it cannot be sorted so.
    """
    if sort not in SORTS:
        raise ConfigError(f"--sort {sort} is none of {', '.join(SORTS)}")
    measured: dict[str, _Measured] = {}
    without_run = []
    for run_dir in run_dirs:
        try:
            measured[run_dir.name] = _measure(run_dir)
        except ConfigError:
            without_run.append(run_dir.name)
    if not measured:
        raise ConfigError(f"none of {len(run_dirs)} folders holds a run; give --runs 'runs/sweep/*', in quotes")
    common = min((one.losses[-1][0] for one in measured.values() if one.losses), default=0)
    evaluated = [{step for step, _ in one.evaluations} for one in measured.values() if one.evaluations]
    common_eval = max(set.intersection(*evaluated), default=0) if evaluated else 0
    keys = _differing([one.settings for one in measured.values()])
    runs = [_compared(name, one, keys, common, common_eval) for name, one in measured.items()]
    runs.sort(key=lambda run: (*SORTS[sort](run), run.name))
    return Comparison(tuple(runs), keys, common, common_eval, tuple(without_run))


def _measure(run_dir: Path) -> _Measured:
    status = status_of(observe(run_dir))
    try:
        lines = read_metrics(run_dir / "metrics.jsonl", _READ)
    except FileNotFoundError:
        lines = []
    return _Measured(
        status,
        _flat(read_config(run_dir)),
        _curve(lines, names.TRAIN_LOSS),
        _curve(lines, names.EVAL_LOSS),
        _median(lines, names.PERF_TOKENS_PER_S),
        _median(lines, names.PERF_MFU),
    )


def _compared(name: str, one: _Measured, keys: Sequence[str], common: int, common_eval: int) -> Compared:
    status = one.status
    max_steps = one.settings.get("train.max_steps")
    run = Compared(
        name,
        {key: one.settings.get(key) for key in keys},
        status.state,
        " ".join(status.reason.split()),
        one.losses[-1][0] if one.losses else 0,
        max_steps if isinstance(max_steps, int) else None,
        tokens_per_s=one.tokens_per_s,
        mfu=one.mfu,
        goodput=status.goodput,
    )
    if one.evaluations:
        run = replace(run, eval_loss=one.evaluations[-1][1], common_eval_loss=dict(one.evaluations).get(common_eval))
    if not one.losses or status.state == NO_START:
        return run
    means = _window_means([loss for _, loss in one.losses])
    until = [loss for step, loss in one.losses if step <= common]
    return replace(run, loss=means[-1], best_loss=min(means), common_loss=_window_means(until)[-1] if until else None)


def _curve(lines: Sequence[Mapping[str, Any]], name: str) -> Curve:
    return [(line["step"], value) for line in lines if (value := number(line.get(name))) is not None]


def _median(lines: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [value for _, value in _curve(lines, name)]
    return median(values) if values else None


def _window_means(losses: Sequence[float]) -> list[float]:
    """Means of a hundredth of the steps in a row, of ten at least; one mean of all where there are fewer."""
    window = max(LEAST_STEPS, len(losses) // LAST_SHARE)
    if len(losses) <= window:
        return [fmean(losses)]
    sums = list(accumulate(losses, initial=0.0))
    return [(sums[end] - sums[end - window]) / window for end in range(window, len(sums))]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {} if prefix in _PLACES else {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _differing(settings: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    known = [one for one in settings if one]  # a run that has not started has no settings yet
    keys = dict.fromkeys(key for one in known for key in one)
    return tuple(key for key in keys if len({repr(one.get(key)) for one in known}) > 1)


def _up(value: float | None) -> tuple[bool, float]:
    return value is None, value or 0.0


def _down(value: float | None) -> tuple[bool, float]:
    return value is None, -(value or 0.0)
