"""Charts can be drawn of any numbers, and nothing is drawn outside of them."""

import math
import re

from hypothesis import example, given
from hypothesis import strategies as st

from scaletrain.monitors.svg_charts import HEIGHT, WIDTH, Series, curves

values = st.one_of(st.floats(), st.floats(-10, 10), st.integers(-3, 3).map(float))


@given(st.lists(st.tuples(values, values)), st.booleans())
@example([(0.0, 2.0**52 + 2)], False)  # half a unit beside it is the same number
@example([(1e18, 3.0), (1e18, 3.0)], True)
@example([(0.0, 2.0), (1.0, math.nextafter(2.0, 3.0))], True)
@example([(0.0, -1.7e308), (1.0, 1.7e308)], True)
@example([(0.0, 0.0), (5e-324, 5e-324)], True)
@example([(0.0, 1.7e308)] * 3, False)
@example([(0.0, math.nan), (1.0, math.inf), (math.nan, 1.0)], True)
@example([(0.0, 1.0)], True)
@example([(float(x), -3.0) for x in range(2000)], True)
def test_any_points_are_drawn_within_the_chart(points: list[tuple[float, float]], is_line: bool) -> None:
    drawn = curves([Series("k", sorted(points), is_line)], "{:g}".format, "{:g}".format, "x")
    assert "nan" not in drawn and "inf" not in drawn
    assert drawn.startswith("<svg") == any(math.isfinite(x) and math.isfinite(y) for x, y in points)
    places = [
        tuple(map(float, pair.split(","))) for found in re.findall(r'points="(.*?)"', drawn) for pair in found.split()
    ]
    places += [(float(x), float(y)) for x, y in re.findall(r'cx="(.*?)" cy="(.*?)"', drawn)]
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in places)
    assert len(re.findall("<text", drawn)) < 40


def test_the_last_label_of_the_x_axis_is_not_cut() -> None:
    drawn = curves([Series("k", [(0.0, 1.0), (8.0, 2.0)])], lambda value: f"{value:g} thousand", "{:g}".format, "x")
    labels = re.findall(r'class="axis (\w+)" x="(.*?)" y=".*?">(\d+) thousand', drawn)
    assert labels[-1] == ("end", f"{WIDTH:.1f}", "8") and labels[-2][0] == "middle"
