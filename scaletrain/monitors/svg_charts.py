"""Small charts as SVG text: they take their colours from the page's style sheet, by class."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from html import escape

WIDTH, HEIGHT = 960, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 10, 34
_CHARACTER = 7  # width of an axis' character, about
_COLUMNS = 450  # of a curve: more points than that are drawn as the lowest and highest of each column
_LARGEST = 1e300  # that is drawn, so that the distance of two values is a number as well
_CLOSEST = 1e-9  # distance of the axis' ends relative to their size: closer ones lose digits, and can be one number

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """Points that belong together.

    Attributes:
        style: Class in the style sheet.
        points: x and y, ascending in x.
        is_line: Whether they are joined; dots otherwise.
    """

    style: str
    points: Sequence[Point]
    is_line: bool = True


def stacked_bar(parts: Sequence[tuple[str, str, float]]) -> str:
    """Draws one bar, cut into parts.

    Args:
        parts: Class, text shown under the pointer, and size of each.

    Returns:
        The SVG element.
    """
    total = sum(size for _, _, size in parts) or 1.0
    x = 0.0
    drawn = []
    for style, text, size in parts:
        width = WIDTH * size / total
        if width > 0:
            drawn.append(_rectangle(style, x, 0, width, 36, text))
        x += width
    return _svg(36, drawn, "share of each kind of time")


def stacked_columns(
    columns: Sequence[Sequence[tuple[str, str, float]]], end: float, label: Callable[[float], str]
) -> str:
    """Draws columns side by side, each cut into parts from the bottom up.

    Args:
        columns: Class, text and share (0 to 1) of each part of each column.
        end: What the right edge stands for; the left one stands for 0.
        label: Writes a value of the x axis.

    Returns:
        The SVG element.
    """
    height = 120
    width = (WIDTH - _LEFT - _RIGHT) / max(1, len(columns))
    drawn = []
    for index, parts in enumerate(columns):
        y = float(height)
        for style, text, share in parts:
            y -= height * share
            if share > 0:
                # A little wider than its place: no light shines through between neighbours.
                drawn.append(_rectangle(style, _LEFT + index * width, y, width + 0.3, height * share, text))
    drawn += _x_axis(0.0, end, height, label)
    return _svg(height + _BOTTOM, drawn, "kinds of time over the run")


def curves(
    series: Sequence[Series], x_label: Callable[[float], str], y_label: Callable[[float], str], what: str
) -> str:
    """Draws curves over common axes.

    Single points far above all others, such as a spike of the loss, are cut off at the upper edge. What is not finite
    is left out.

    Args:
        series: What to draw, the first below the others.
        x_label: Writes a value of the x axis.
        y_label: Writes a value of the y axis.
        what: What is drawn, for who cannot see it.

    Returns:
        The SVG element; a short text where there is no point.
    """
    series = [replace(one, points=[*map(_clamped, filter(_is_finite, one.points))]) for one in series]
    points = [point for one in series for point in one.points]
    if not points:
        return '<p class="note">nothing to draw yet</p>'
    left, right = _spread(min(x for x, _ in points), max(x for x, _ in points))
    heights = sorted(y for _, y in points)
    bottom, top = _spread(heights[0], heights[math.ceil(0.995 * (len(heights) - 1))])
    floor = HEIGHT - _BOTTOM

    def place(point: Point) -> str:
        x = _LEFT + (point[0] - left) / (right - left) * (WIDTH - _LEFT - _RIGHT)
        y = floor - (min(point[1], top) - bottom) / (top - bottom) * (floor - _TOP)
        return f"{x:.1f},{y:.1f}"

    drawn = []
    for tick in ticks(bottom, top):
        y = place((left, tick)).split(",")[1]
        drawn.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        drawn.append(f'<text class="axis end" x="{_LEFT - 6}" y="{y}" dy="4">{escape(y_label(tick))}</text>')
    drawn += _x_axis(left, right, floor, x_label)
    for one in series:
        thinned = _thin(one.points, left, right)
        if one.is_line and len(thinned) > 1:
            drawn.append(f'<polyline class="curve {one.style}" points="{" ".join(map(place, thinned))}"/>')
        else:
            dots = (place(point).split(",") for point in thinned)
            drawn += [f'<circle class="dot {one.style}" cx="{x}" cy="{y}" r="3"/>' for x, y in dots]
    return _svg(HEIGHT, drawn, what)


def standalone(element: str, style_sheet: str) -> str:
    """Makes a file of a chart.

    Args:
        element: The SVG element of one of the functions here.
        style_sheet: Rules for the classes in it.

    Returns:
        Text of an SVG file; the element itself where there was nothing to draw.
    """
    opening = '<svg xmlns="http://www.w3.org/2000/svg" '
    begin, _, rest = element.removeprefix("<svg ").partition(">")
    return f"{opening}{begin}><style>{style_sheet}</style>{rest}\n" if element.startswith("<svg ") else element


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Chooses round values between two bounds.

    Args:
        low: The lower bound.
        high: The upper bound, above it.
        most: About how many.

    Returns:
        Multiples of 1, 2 or 5 times a power of ten.
    """
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _spread(low: float, high: float) -> Point:
    """Ends of an axis that holds both bounds, as far from each other as can be drawn."""
    closest = max(1.0 / _LARGEST, _CLOSEST * max(abs(low), abs(high)))
    if high - low > closest:
        return low, high
    room = max(0.5, closest)
    return low - room, high + room


def _thin(points: Sequence[Point], left: float, right: float) -> Sequence[Point]:
    if len(points) <= 2 * _COLUMNS:
        return points
    columns: dict[int, list[Point]] = {}
    for point in points:
        columns.setdefault(int(_COLUMNS * (point[0] - left) / (right - left)), []).append(point)
    return [point for own in columns.values() for point in sorted({min(own, key=_y), max(own, key=_y)})]


def _is_finite(point: Point) -> bool:
    return math.isfinite(point[0]) and math.isfinite(point[1])


def _clamped(point: Point) -> Point:
    x, y = (min(max(value, -_LARGEST), _LARGEST) for value in point)
    return x, y


def _y(point: Point) -> float:
    return point[1]


def _x_axis(left: float, right: float, floor: float, label: Callable[[float], str]) -> list[str]:
    drawn = [f'<line class="base" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{floor}" y2="{floor}"/>']
    if right - left > 1.0 / _LARGEST:
        for tick in ticks(left, right, most=8):
            x = _LEFT + (tick - left) / (right - left) * (WIDTH - _LEFT - _RIGHT)
            drawn.append(f'<line class="base" x1="{x:.1f}" x2="{x:.1f}" y1="{floor}" y2="{floor + 4}"/>')
            text = label(tick)
            # The middle of a long label would stand so far right that its end is outside.
            anchor, x = ("end", WIDTH) if x + _CHARACTER * len(text) / 2 > WIDTH else ("middle", x)
            drawn.append(f'<text class="axis {anchor}" x="{x:.1f}" y="{floor + 18}">{escape(text)}</text>')
    return drawn


def _rectangle(style: str, x: float, y: float, width: float, height: float, text: str) -> str:
    place = f'x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}"'
    return f'<rect class="{style}" {place}><title>{escape(text)}</title></rect>'


def _svg(height: float, drawn: Iterable[str], what: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(what)}">{"".join(drawn)}</svg>'
