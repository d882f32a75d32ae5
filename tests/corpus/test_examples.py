import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaletrain.corpus.examples import ExampleOptions, Format, parse_record, take_example, texts_within
from scaletrain.errors import ConfigError, DataError

TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@given(st.text(min_size=1), st.text(min_size=1), st.sampled_from([None, "train", "validation", "test"]))
def test_only_what_is_known_of_a_record_is_kept(source: str, target: str, split: str | None) -> None:
    record = {"id": 7, "target": target, "source": source, "split": split}
    taken = take_example(record, "pairs", "here")
    assert not isinstance(taken, str) and taken.split == split
    assert json.loads(taken.text) == {"source": source, "target": target}
    assert list(texts_within(taken.text)) == [source, target]
    # The order of fields does not make another example.
    assert take_example(dict(reversed(record.items())), "pairs", "there") == taken


@pytest.mark.parametrize(
    ("kind", "record", "canonical"),
    [
        ("classes", {"text": "a", "label": "x", "text_pair": None}, {"label": "x", "text": "a"}),
        ("classes", {"text": "a", "label": ["y", "x", "y"]}, {"label": ["x", "y"], "text": "a"}),
        ("classes", {"text": "a", "label": [], "text_pair": ""}, {"label": [], "text": "a", "text_pair": ""}),
        ("numbers", {"text": "a", "value": 1}, {"text": "a", "value": [1]}),
        ("numbers", {"text": "a", "value": [0.1, -2]}, {"text": "a", "value": [0.1, -2]}),
        ("chat", {"messages": TURNS, "tools": []}, {"messages": TURNS}),
        (
            "chat",
            {"messages": [*TURNS, {**TURNS[0], "n": None, "x": [1]}]},
            {"messages": [*TURNS, {**TURNS[0], "x": [1]}]},
        ),
    ],
)
def test_records_of_each_format_are_taken(kind: Format, record: dict[str, Any], canonical: dict[str, Any]) -> None:
    taken = take_example(record, kind, "here")
    assert not isinstance(taken, str) and json.loads(taken.text) == canonical


@pytest.mark.parametrize(
    ("kind", "record", "reason"),
    [
        ("pairs", {"source": "", "target": "a"}, "empty source"),
        ("pairs", {"source": "a", "target": ""}, "empty target"),
        ("classes", {"text": "", "label": "a"}, "empty text"),
        ("chat", {"messages": TURNS[:1]}, "conversation without an answer"),
        ("chat", {"messages": []}, "conversation without an answer"),
    ],
)
def test_records_with_nothing_to_learn_are_told_apart(kind: Format, record: dict[str, Any], reason: str) -> None:
    assert take_example(record, kind, "here") == reason


@pytest.mark.parametrize(
    ("kind", "record", "message"),
    [
        ("pairs", [], "here: a list, not an object"),
        ("pairs", {"source": "a", "x": 1}, "no 'target', which --format pairs needs; the record has 'source', 'x'"),
        ("pairs", {"source": "a", "target": None}, "no 'target'"),
        ("pairs", {"source": 1, "target": "a"}, "here: source is a int, not text"),
        ("pairs", {"source": "\ud800", "target": "a"}, "here: .*surrogates not allowed"),
        ("pairs", {"source": "a", "target": "a", "split": "dev"}, "split is 'dev', but must be one of train, valid"),
        ("classes", {"text": "a", "label": 3}, "label is 3, but must be the name of a class, in quotes"),
        ("classes", {"text": "a", "label": ""}, "but must be the name of a class"),
        ("classes", {"text": "a", "label": ["x", 1]}, "but must be the name of a class"),
        ("numbers", {"text": "a", "value": True}, "but must be a finite number"),
        ("numbers", {"text": "a", "value": [1, float("nan")]}, "but must be a finite number"),
        ("numbers", {"text": "a", "value": 1e39}, "value is 1e\\+39, but must be a finite number of at most 3.4e\\+38"),
        ("numbers", {"text": "a", "value": 10**400}, "but must be a finite number"),
        ("numbers", {"text": "a", "value": []}, "but must be a finite number"),
        ("numbers", {"text": "a", "value": "1"}, "but must be a finite number"),
        ("chat", {"messages": "a"}, "messages must be a list of objects"),
        ("chat", {"messages": [*TURNS, {"from": "human", "value": "a"}]}, "messages: message 3 has no text in 'role'"),
        ("chat", {"messages": [{"role": "assistant", "content": None}]}, "message 1 has no text in 'content'"),
    ],
)
def test_a_record_of_another_kind_is_refused_with_its_place(kind: Format, record: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        take_example(record, kind, "here")


@pytest.mark.parametrize("line", [b"{", b"\xff", b"[" * 100_000])
def test_a_line_that_is_no_json_is_refused_with_its_place(line: bytes) -> None:
    with pytest.raises(DataError, match=r"a\.jsonl, line 3: not a line of JSON"):
        parse_record(line, "a.jsonl, line 3")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"format": "pairs", "chat_template": "plain"}, "--chat_template belongs to --format chat, not to pairs"),
        ({"format": "numbers", "classes": ("a", "b")}, "--classes belongs to --format classes"),
        ({"format": "chat", "max_target_tokens": 3}, "--max_target_tokens belongs to --format pairs"),
        ({"format": "chat"}, "--format chat needs --chat_template: chatml, llama3, plain"),
    ],
)
def test_options_of_another_format_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ExampleOptions(**given)
