from typing import Any

import pytest

from scaletrain.corpus.filters import broken_rule
from scaletrain.corpus.rules import CleaningRules

LINES = "one two\n\n  one two  \n- three...\nfour"  # lines of 7, 7, 10 and 4 characters


@pytest.mark.parametrize(
    ("rule", "text", "value"),
    [
        ("length.min_characters", "aé\n🙂", 4),
        ("length.max_characters", "aé\n🙂", 4),
        ("length.min_words", " a  b\nc ", 3),
        ("length.max_words", " a  b\nc ", 3),
        ("characters.min_letter_share", "aé1 -", 2 / 5),
        ("characters.min_alphanumeric_share", "aλ1 -", 3 / 5),
        ("characters.max_digit_share", "a12٣ -", 3 / 6),
        ("characters.max_symbol_share", "a1\t\n-🙂", 2 / 6),
        ("characters.min_mean_word_characters", "a bcd\nef", 2),
        ("characters.max_mean_word_characters", "a bcd\nef", 2),
        ("characters.min_words_with_letter_share", "a1 22 -- é", 2 / 4),
        ("characters.max_hash_or_ellipsis_per_word", "#a ## b... c…", 5 / 4),
        ("lines.max_line_characters", LINES, 10),
        ("lines.max_mean_line_characters", LINES, 28 / 4),
        ("lines.max_bullet_line_share", LINES, 1 / 4),
        ("lines.max_ellipsis_line_share", LINES, 1 / 4),
        ("lines.max_repeated_line_share", LINES, 1 / 4),
        ("lines.max_repeated_line_character_share", LINES, 7 / 28),
    ],
)
def test_a_rule_breaks_just_beyond_its_value(rule: str, text: str, value: float) -> None:
    section, name = rule.split(".")

    def verdict(limit: float) -> str | None:
        return broken_rule(text, CleaningRules.model_validate({section: {name: limit}}))

    step = 1 if (isinstance(value, int) and section == "length") or name == "max_line_characters" else 1e-6
    beyond = step if name.startswith("min") else -step
    assert verdict(value) is None
    assert verdict(value + beyond) == rule


@pytest.mark.parametrize("text", [" \n\t ", "\n", "\ud7ff\U0010ffff", "🙂"])
def test_texts_without_words_or_lines_have_a_verdict(text: str) -> None:
    rules: dict[str, Any] = {
        "characters": {"max_mean_word_characters": 5, "min_words_with_letter_share": 0, "max_digit_share": 0},
        "lines": {"max_repeated_line_character_share": 0, "max_line_characters": 9, "max_bullet_line_share": 0},
    }
    assert broken_rule(text, CleaningRules.model_validate(rules)) is None


def test_the_first_broken_rule_is_named() -> None:
    rules = CleaningRules.model_validate({"lines": {"max_line_characters": 1}, "length": {"min_words": 9}})
    assert broken_rule("some words", rules) == "length.min_words"
