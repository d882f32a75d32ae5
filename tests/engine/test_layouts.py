"""A training state is the same, bit for bit, in whatever way DeepSpeed lays it out; so any loads into any other."""

from pathlib import Path

import pytest

from tests.distributed import run_on_ranks
from tests.engine import layouts
from tests.engine.layouts import Layout

CUT, END = 10, 20
# Largest difference of a loss in those ten steps. Measured: 2e-7 between fp32 layouts, 2e-4 between bf16 layouts, 2e-3
# between the two. Moments that are lost make 2e-2.
FP32, BF16 = 1e-5, 5e-3


@pytest.mark.parametrize(
    "world_size", [1, 2, pytest.param(3, marks=pytest.mark.thorough), pytest.param(4, marks=pytest.mark.thorough)]
)
def test_layouts_hold_the_canonical_form(world_size: int, tmp_path: Path) -> None:
    # Every layout on one of the numbers of ranks; all on all: python -m tests.engine.layouts
    part = layouts.all_layouts()[world_size - 1 :: 4]
    part += [layout for layout in layouts.all_layouts() if layout == Layout(3, "", "bf16") and layout not in part]
    results = run_on_ranks(world_size, layouts.deviations, part, str(tmp_path))
    assert not [problem for rank in results for problem in rank]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("saved", "on", "loaded", "to"),
    [
        (Layout(3, "", "fp32"), 3, Layout(1, "", "fp32"), 2),
        pytest.param(Layout(1, "", "fp32"), 2, Layout(3, "", "fp32"), 3, marks=pytest.mark.thorough),
        pytest.param(Layout(2, "optimizer", "fp32"), 2, Layout(0, "", "fp32"), 3, marks=pytest.mark.thorough),
        pytest.param(Layout(0, "", "fp32"), 4, Layout(3, "all", "fp32"), 3, marks=pytest.mark.thorough),
        pytest.param(Layout(1, "optimizer", "bf16"), 3, Layout(3, "", "bf16"), 2, marks=pytest.mark.thorough),
        pytest.param(Layout(3, "all", "bf16"), 2, Layout(2, "", "bf16"), 3, marks=pytest.mark.thorough),
        pytest.param(Layout(3, "", "bf16"), 3, Layout(2, "", "fp32"), 1, marks=pytest.mark.thorough),
        pytest.param(Layout(1, "", "fp32"), 3, Layout(3, "optimizer", "bf16"), 2, marks=pytest.mark.thorough),
    ],
    ids=str,
)
def test_the_next_losses_are_those_of_the_uncut_run(
    saved: Layout, on: int, loaded: Layout, to: int, tmp_path: Path
) -> None:
    uncut = run_on_ranks(on, layouts.save_and_go_on, saved, CUT, END, str(tmp_path / "saved"))[0]
    moved = run_on_ranks(to, layouts.load_and_go_on, loaded, CUT, END, str(tmp_path / "saved"))[0]
    assert moved == pytest.approx(uncut, abs=BF16 if "bf16" in (saved.precision, loaded.precision) else FP32)
