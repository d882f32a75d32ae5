import pytest

from scaletrain.errors import ConfigError
from scaletrain.hardware.expectation import Expectation


def test_words_are_read_by_their_kind() -> None:
    read = Expectation.from_words("gpus=8, driver=570.10,cuda=12.8,nvlinks=18,all_reduce_gb_per_s=300,min_free_gib=0.5")
    assert (read.gpus, read.driver, read.cuda, read.nvlinks) == (8, "570.10", "12.8", 18)
    assert (read.all_reduce_gb_per_s, read.min_free_gib) == (300.0, 0.5)


def test_nothing_is_expected_without_words() -> None:
    assert Expectation.from_words("") == Expectation(gpus=None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gpu=8", "--expect gpu=8: give some of gpus=..."),
        ("gpus", "--expect gpus: give some of"),
        ("driver=", "--expect driver=: give some of"),
        ("token=x", "--expect token=x: give some of"),
        ("gpus=eight", "gpus is a whole number"),
        ("gpus=-1", "gpus is out of range"),
        ("all_reduce_gb_per_s=nan", "all_reduce_gb_per_s is out of range"),
        ("gpus=0,driver=570", "gpus=0: driver is of GPUs"),
        ("nvlinks=18,cuda=12,gpus=0", "gpus=0: cuda, nvlinks is of GPUs"),
        ("min_free_gib=much", "min_free_gib is a number"),
    ],
)
def test_a_mistake_is_named(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Expectation.from_words(text)
    assert said in str(refused.value)
