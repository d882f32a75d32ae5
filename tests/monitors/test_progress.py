"""What a person reads reads well."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaletrain.monitors.progress import (
    Progress,
    evaluation_line,
    format_count,
    format_duration,
    progress_line,
    start_banner,
)

SUFFIXES = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (950, "950"),
        (999.6, "1.00k"),
        (12_345, "12.3k"),
        (124_439_808, "124M"),
        (999_950, "1.00M"),
        (6_738_415_616, "6.74B"),
        (1.4e12, "1.40T"),
        (5e15, "5000T"),
        (float("nan"), "nan"),
    ],
)
def test_counts(value: float, text: str) -> None:
    assert format_count(value) == text


@given(st.floats(min_value=1, max_value=1e15))
def test_a_shortened_count_is_right_to_three_digits(value: float) -> None:
    text = format_count(value)
    number = float(text[:-1]) * SUFFIXES[text[-1]] if text[-1] in SUFFIXES else float(text)
    assert number == pytest.approx(value, rel=0.006, abs=0.5)
    assert len(text) <= 5


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0s"),
        (0.44, "0.4s"),
        (9.96, "10s"),
        (59.6, "1m00s"),
        (192, "3m12s"),
        (3599.7, "1h00m"),
        (18_240, "5h04m"),
        (86_399, "1d00h"),
        (212_400, "2d11h"),
        (float("inf"), "?"),
        (float("nan"), "?"),
        (-1, "?"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_a_line_tells_where_the_run_stands() -> None:
    progress = Progress(
        step=120, max_steps=1000, loss=4.12345, lr=6e-4, tokens_per_s=12_345.6, mfu=0.431, time_left_s=192.0
    )
    line = progress_line(progress)
    assert line == "step  120/1000  12%  loss  4.1235  lr 6.00e-04   12.3k tokens/s  MFU 43.1%  3m12s left"


def test_lines_of_a_run_are_aligned() -> None:
    lines = [
        progress_line(Progress(step, 1000, loss, 1e-3, rate, 0.05, 10.0))
        for step, loss, rate in ((1, 10.5, 950.0), (10, 9.25, 1.2e6), (1000, 0.01, 12_000.0))
    ]
    assert len({line.index("loss") for line in lines}) == len({line.index("tokens/s") for line in lines}) == 1


def test_what_is_not_known_is_left_out() -> None:
    line = progress_line(Progress(1, 10, 9.0, 1e-3, 100.0, mfu=None, time_left_s=None))
    assert "MFU" not in line and "left" not in line
    assert evaluation_line(5, {"eval/loss": 1.0}) == "step 5  validation loss 1.0000"
    assert evaluation_line(5, {"eval/loss": 656.4, "eval/perplexity": 1.2e285}).endswith("  perplexity 1.2e+285")
    told = {"eval/loss": 1.0, "eval/loss/web": 2.0, "eval/perplexity": 2.71828, "eval/bits_per_byte": 1.23456}
    assert evaluation_line(5, told | {"eval/macro_f1": 0.25}) == (
        "step 5  validation loss 1.0000  perplexity 2.72  1.2346 bits per byte  macro f1 0.25"
    )


def test_the_banner_aligns_its_values() -> None:
    banner = start_banner("run", [("ranks", "2"), ("tokens per step", "8.19k")])
    assert banner == "run\n  ranks            2\n  tokens per step  8.19k"
    assert start_banner("run", []) == "run"
