from typing import Any

import pytest

from scaletrain.corpus.documents import Document
from scaletrain.corpus.examples import ExampleOptions, take_example
from scaletrain.corpus.meaning import Meaning, find_meaning
from scaletrain.errors import DataError


def meaning(options: ExampleOptions, *records: dict[str, Any]) -> Meaning:
    taken = [take_example({"text": "a", **record}, options.format, "here") for record in records]
    return find_meaning([Document(f"a#{n}", t.text) for n, t in enumerate(taken) if not isinstance(t, str)], options)


CLASSES, NUMBERS = ExampleOptions("classes"), ExampleOptions("numbers")


def test_classes_are_those_of_all_records_sorted() -> None:
    found = meaning(CLASSES, {"label": "y"}, {"label": "x"}, {"label": "y", "text_pair": "b"})
    assert found == Meaning(True, ("label",), ("x", "y"))
    assert [found.values_of({"label": name}) for name in "xy"] == [(0,), (1,)]
    many = meaning(CLASSES, {"label": ["y", "x"]}, {"label": []}, {"label": ["z"]})
    assert many == Meaning(False, ("x", "y", "z"), ("x", "y", "z"))
    assert [many.values_of({"label": names}) for names in (["x", "z"], [])] == [(1, 0, 1), (0, 0, 0)]


def test_given_classes_keep_their_order_and_may_have_no_record() -> None:
    given = ExampleOptions("classes", classes=("y", "z", "x"))
    assert meaning(given, {"label": "x"}, {"label": "y"}) == Meaning(False, ("label",), ("y", "z", "x"))
    with pytest.raises(DataError, match="a#1: class 'w' is none of --classes"):
        meaning(given, {"label": "x"}, {"label": "w"})


def test_numbers_are_named() -> None:
    assert meaning(NUMBERS, {"value": 1}, {"value": [2.5]}) == Meaning(False, ("value",))
    found = meaning(NUMBERS, {"value": [1, 2], "text_pair": "b"})
    assert found == Meaning(True, ("value_0", "value_1")) and found.values_of({"value": [1, 2]}) == (1, 2)


@pytest.mark.parametrize(
    ("options", "records", "message"),
    [
        (CLASSES, [{"label": "x"}, {"label": ["y"]}], "a#1 has a list of names, where a#0 has one name"),
        (CLASSES, [{"label": ["x"]}, {"label": []}, {"label": "y"}], "a#2 has one name, where a#0 has a list"),
        (CLASSES, [{"label": "x"}, {"label": "x"}], "The classes are 'x': two or more are needed"),
        (CLASSES, [{"label": []}], "The classes are none"),
        (ExampleOptions("classes", classes=("x", "x")), [{"label": "x"}], "each with a name of its own"),
        (NUMBERS, [{"value": 1}, {"value": [1, 2]}], "a#1 has 2 numbers, where a#0 has 1"),
    ],
)
def test_records_that_do_not_go_together_are_named(
    options: ExampleOptions, records: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        meaning(options, *records)
