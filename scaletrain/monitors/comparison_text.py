"""A comparison of runs as a table, for a terminal and as Markdown."""

from collections.abc import Callable, Sequence

from scaletrain.monitors.comparison import LEAST_STEPS, Compared, Comparison
from scaletrain.monitors.goodput_summary import COMPLETE
from scaletrain.monitors.goodput_text import cut

_BEST = " *"
_MOST_SETTING, _MOST_STATE = 24, 60

Row = tuple[str, ...]


def comparison_table(comparison: Comparison) -> list[Row]:
    """Lays a comparison out; columns that say nothing are left out, the best of each is marked with a star.

    Args:
        comparison: The comparison.

    Returns:
        Rows of texts, all of the same length, the first with the titles.
    """
    runs = comparison.runs
    at, evaluated = comparison.common_step, comparison.common_eval_step
    columns = [
        ("run", [run.name for run in runs]),
        *((key, [_setting(run.settings[key]) for run in runs]) for key in comparison.keys),
        ("step", [str(run.step) for run in runs]),
        ("train loss", _numbers([run.loss for run in runs], _loss, min)),
        ("lowest", _numbers([run.best_loss for run in runs], _loss, min)),
        (f"train loss at {at}", _numbers([run.common_loss for run in runs], _loss, min)),
        ("validation loss", _numbers([run.eval_loss for run in runs], _loss, min)),
        (f"validation loss at {evaluated}", _numbers([run.common_eval_loss for run in runs], _loss, min)),
        ("tokens/s", _numbers([run.tokens_per_s for run in runs], lambda value: f"{value:,.0f}", max)),
        ("MFU", _numbers([run.mfu for run in runs], lambda value: f"{value:.1%}", max)),
        ("goodput", _numbers([run.goodput for run in runs], lambda value: f"{value:.1%}", max)),
        ("verdict", [_state(run) for run in runs]),
    ]
    if all(run.step == at for run in runs):
        columns = [column for column in columns if column[0] != f"train loss at {at}"]
    if all(run.eval_loss == run.common_eval_loss for run in runs):
        columns = [column for column in columns if column[0] != f"validation loss at {evaluated}"]
    columns = [(title, cells) for title, cells in columns if any(cell != "-" for cell in cells)]
    titles = tuple(title for title, _ in columns)
    return [titles, *zip(*(cells for _, cells in columns), strict=True)]


def comparison_notes(comparison: Comparison) -> list[str]:
    """What a reader of the table has to know, a line each."""
    notes = [f"Losses in training are means of the last hundredth of the steps, of {LEAST_STEPS} at least; * is best."]
    if comparison.common_step:
        text = f"All runs that train have reached step {comparison.common_step}"
        text += f" and evaluated at step {comparison.common_eval_step}." if comparison.common_eval_step else "."
        notes.append(text)
    else:
        notes.append("No run has trained yet.")
    if comparison.without_run:
        notes.append(f"No runs: {', '.join(comparison.without_run)}.")
    return notes


def text_lines(rows: Sequence[Row]) -> list[str]:
    """A table for a terminal: numbers to the right, texts to the left.

    Args:
        rows: As ``comparison_table`` returns them.
    """
    short = [tuple(cut(cell, _MOST_STATE) for cell in row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*short, strict=True)]
    last = len(widths) - 1
    lines = []
    for row in short:
        cells = [
            f"{cell:<{width}}" if column in (0, last) else f"{_aligned(cell, column, short):>{width}}"
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def markdown_lines(rows: Sequence[Row]) -> list[str]:
    """The same in Markdown.

    Args:
        rows: As ``comparison_table`` returns them.
    """
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def _aligned(cell: str, column: int, rows: Sequence[Row]) -> str:
    """Digits stand below digits where another cell of the column has the star."""
    has_star = any(row[column].endswith(_BEST) for row in rows[1:])
    return cell + " " * len(_BEST) if has_star and not cell.endswith(_BEST) and cell != rows[0][column] else cell


def _numbers(
    values: Sequence[float | None],
    written: Callable[[float], str],
    best_of: Callable[[list[float]], float],
) -> list[str]:
    known = [value for value in values if value is not None]
    best = best_of(known) if len(set(known)) > 1 else None
    return ["-" if one is None else written(one) + (_BEST if one == best else "") for one in values]


def _loss(value: float) -> str:
    return f"{value:.4f}"


def _setting(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:g}" if isinstance(value, float) else cut(str(value), _MOST_SETTING)


def _state(run: Compared) -> str:
    if run.state == COMPLETE:
        return run.state
    place = f", step {run.step}" + (f" of {run.max_steps}" if run.max_steps else "")
    return f"{run.state}{place}" + (f": {run.reason}" if run.reason else "")
