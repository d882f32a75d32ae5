"""Numbers that tools/convert.py is given are of use, or told to be of none."""

import pytest

from tests.tools.test_convert import convert


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("to_hf", "--source", "a", "--out", "b", "--shard_gb", "inf"), "--shard_gb inf is out of range"),
        (("to_hf", "--source", "a", "--out", "b", "--weights", "best"), "--weights best is none of trained, ema"),
        (("average", "--source", "a,b", "--out", "c", "--weights", "inf,1"), "--weights inf is out of range"),
        (("diff", "--a", "a", "--b", "b", "--tolerance", "nan"), "--tolerance nan is out of range"),
        (("diff", "--a", "a", "--b", "b", "--tolerance", "-1"), "--tolerance -1 is out of range"),
    ],
)
def test_a_number_of_no_use_is_told(arguments: tuple[str, ...], message: str) -> None:
    done = convert(*arguments)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
