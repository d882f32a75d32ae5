"""What a learning-rate range test has found: as a table, as plain data, and as a chart that stands alone."""

import math
from typing import Any

from scaletrain.monitors.comparison_text import text_lines
from scaletrain.monitors.lr_range import LrRange, RatePoint
from scaletrain.monitors.svg_charts import Series, curves, standalone

_ROWS = 16

_CSS = """
svg { background: #ffffff; font: 12px system-ui, sans-serif; }
.axis { fill: #5b6673; } .middle { text-anchor: middle; } .end { text-anchor: end; }
.grid { stroke: #d9dee4; } .base { stroke: #5b6673; }
.curve { fill: none; stroke-width: 1.6; stroke-linejoin: round; }
.measured { stroke: #9aa5b1; stroke-width: .9; } .smoothed { stroke: #3c8fd0; }
.steepest { fill: #2a9d6f; } .lowest { fill: #d64545; }
"""


def range_lines(found: LrRange) -> list[str]:
    """Writes the result for a terminal: some of the steps, and the rates to choose from.

    Args:
        found: The result.

    Returns:
        Lines without line ends.
    """
    points, marks = found.points, _marks(found)
    every = max(1, len(points) // _ROWS)
    shown = [point for index, point in enumerate(points) if index % every == 0 or point.step in marks]
    rows = [("step", "rate", "loss", "smoothed", "")]
    rows += [
        (str(one.step), f"{one.lr:.2e}", f"{one.loss:.4f}", f"{one.smoothed:.4f}", marks.get(one.step, ""))
        for one in shown
    ]
    return [*text_lines(rows), "", *_conclusions(found)]


def range_content(found: LrRange) -> dict[str, Any]:
    """The result as plain data.

    Args:
        found: The result.

    Returns:
        What goes into lr_find.json; a rate that could not be found is None.
    """
    return {
        "steepest_descent": None if found.steepest is None else found.steepest.lr,
        "tenth_of_lowest": found.tenth_of_lowest,
        "lowest": None if found.lowest is None else found.lowest.lr,
        "diverged_at": found.diverged_at,
        "steps": [vars(point) for point in found.points],
    }


def range_chart(found: LrRange) -> str:
    """Draws the loss over the rates.

    Args:
        found: The result.

    Returns:
        Text of an SVG file: grey as measured, blue smoothed, green the steepest descent, red the lowest loss.
    """
    series = [
        Series("measured", [(math.log10(one.lr), one.loss) for one in found.points]),
        Series("smoothed", [(math.log10(one.lr), one.smoothed) for one in found.points]),
    ]
    for style, point in (("steepest", found.steepest), ("lowest", found.lowest)):
        if point is not None:
            series.append(Series(style, [(math.log10(point.lr), point.smoothed)], is_line=False))
    drawn = curves(series, lambda power: f"{10.0**power:.3g}", "{:g}".format, "loss over the learning rate")
    return standalone(drawn, _CSS)


def _marks(found: LrRange) -> dict[int, str]:
    marks = {}
    if found.lowest is not None:
        marks[found.lowest.step] = "lowest"
    if found.steepest is not None:
        marks[found.steepest.step] = "steepest descent"
    return marks


def _conclusions(found: LrRange) -> list[str]:
    last: RatePoint = found.points[-1]
    if found.diverged_at is not None:
        ended = f"The loss diverged at a rate of {found.diverged_at:.2e}."
    else:
        ended = f"The loss did not diverge up to a rate of {last.lr:.2e}."
    if found.steepest is None or found.lowest is None:
        return [ended, "It never fell: begin at a lower --min_lr, or take more --num_steps."]
    lines = [
        ended,
        f"Steepest descent at {found.steepest.lr:.2e}; a tenth of the rate of the lowest loss: "
        f"{found.lowest.lr / 10.0:.2e}.",
    ]
    if found.lowest.step == last.step and found.diverged_at is None:
        lines.append("The loss was falling still at the end: raise --max_lr.")
    return lines
