"""Compares runs: what differs between their settings, and how they came out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import yaml

from scaletrain.errors import ConfigError
from scaletrain.monitors import names
from scaletrain.monitors.jsonl_writer import read_metrics
from scaletrain.monitors.status import read_status

_LAST_SHARE = 100
_LEAST_STEPS = 10
_PLACES = ("run_dir",)


@dataclass(frozen=True)
class Compared:
    """One run of several.

    Attributes:
        name: Of its folder.
        settings: Its values of what differs between the runs.
        state: Its verdict, or ``running``, or ``not started``.
        reason: Why it ended, where it did not complete.
        steps: Steps done.
        loss: Mean training loss of the last hundredth of its steps, of ten at least; None without a step.
        common_loss: The same, up to the largest step that all runs with a loss have done.
        eval_loss: Last validation loss; None where there is none.
        eval_step: Step of that.
        tokens_per_s: Median speed.
    """

    name: str
    settings: Mapping[str, Any]
    state: str
    reason: str
    steps: int
    loss: float | None
    common_loss: float | None
    eval_loss: float | None
    eval_step: int | None
    tokens_per_s: float | None


@dataclass(frozen=True)
class Comparison:
    """Several runs.

    Attributes:
        runs: The runs, the best first.
        keys: Keys of the settings that differ.
        common_step: Largest step that all runs with a loss have done; 0 where none has.
    """

    runs: tuple[Compared, ...]
    keys: tuple[str, ...]
    common_step: int


def compare(run_dirs: Sequence[Path]) -> Comparison:
    """Compares runs.

    Args:
        run_dirs: Their folders.

    Returns:
        The comparison, sorted by validation loss, and by training loss where there is none.

    Raises:
        ConfigError: None of the folders holds a run.
    """
    states, curves = {}, {}
    for run_dir in run_dirs:
        try:
            states[run_dir] = read_status(run_dir)
        except ConfigError:
            continue
        path = run_dir / "metrics.jsonl"
        curves[run_dir] = read_metrics(path) if path.exists() else []
    if not states:
        raise ConfigError("none of the folders holds a run; give --runs 'runs/sweep/*', in quotes")
    trained = {run_dir: [line for line in curve if names.TRAIN_LOSS in line] for run_dir, curve in curves.items()}
    common = min((lines[-1]["step"] for lines in trained.values() if lines), default=0)
    settings = {run_dir: _settings(run_dir) for run_dir in states}
    keys = _differing(list(settings.values()))
    runs = []
    for run_dir, status in states.items():
        lines = trained[run_dir]
        until = [line for line in lines if line["step"] <= common]
        rates = [line[names.PERF_TOKENS_PER_S] for line in lines if names.PERF_TOKENS_PER_S in line]
        ended = status.state not in ("running", "not started", "complete")
        runs.append(
            Compared(
                run_dir.name,
                {key: settings[run_dir].get(key) for key in keys},
                status.state,
                status.starts[-1][2] if ended and status.starts else "",
                lines[-1]["step"] if lines else 0,
                _last_loss(lines),
                _last_loss(until),
                *_last_evaluation(curves[run_dir]),
                median(rates) if rates else None,
            )
        )
    runs.sort(key=lambda run: (run.eval_loss is None, run.eval_loss or 0.0, run.loss is None, run.loss or 0.0))
    return Comparison(tuple(runs), keys, common)


def table(comparison: Comparison) -> list[list[str]]:
    """The comparison as rows of texts, the first with the titles; columns that say nothing are left out.

    Args:
        comparison: What ``compare`` returned.
    """
    at = f"loss at {comparison.common_step}"
    titles = ["run", *comparison.keys, "steps", "loss", at, "validation loss", "tokens/s", "state"]
    rows = [titles]
    for run in comparison.runs:
        rows.append(
            [
                run.name,
                *(_text(run.settings[key]) for key in comparison.keys),
                f"{run.steps:,}",
                _loss(run.loss),
                _loss(run.common_loss),
                _loss(run.eval_loss),
                "-" if run.tokens_per_s is None else f"{run.tokens_per_s:,.0f}",
                f"{run.state}: {run.reason}" if run.reason else run.state,
            ]
        )
    if all(run.steps == comparison.common_step for run in comparison.runs):
        column = titles.index(at)
        rows = [row[:column] + row[column + 1 :] for row in rows]
    return rows


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a table in Markdown."""
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]) + "\n"


def _last_loss(lines: Sequence[Mapping[str, Any]]) -> float | None:
    last = lines[-max(_LEAST_STEPS, len(lines) // _LAST_SHARE) :]
    return fmean(line[names.TRAIN_LOSS] for line in last) if last else None


def _last_evaluation(lines: Sequence[Mapping[str, Any]]) -> tuple[float | None, int | None]:
    evaluated = [line for line in lines if names.EVAL_LOSS in line]
    return (evaluated[-1][names.EVAL_LOSS], evaluated[-1]["step"]) if evaluated else (None, None)


def _settings(run_dir: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load((run_dir / "config.yaml").read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    flat: dict[str, Any] = {}

    def visit(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                visit(f"{prefix}{key}.", inner)
        else:
            flat[prefix.rstrip(".")] = value

    visit("", content if isinstance(content, dict) else {})
    return {key: value for key, value in flat.items() if key not in _PLACES}


def _differing(settings: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    known = [one for one in settings if one]  # a run that has not started has no settings yet
    keys = dict.fromkeys(key for one in known for key in one)
    return tuple(key for key in keys if len({_text(one.get(key)) for one in known}) > 1)


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _loss(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
