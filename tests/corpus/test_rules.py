import re
from pathlib import Path

import pytest

from scaletrain.config.coercion import describe
from scaletrain.config.fields import limits
from scaletrain.corpus.filters import check_measures
from scaletrain.corpus.rules import CleaningRules, load_rules, rule_fields
from scaletrain.errors import ConfigError

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/corpora.md").read_text()


def written(folder: Path, text: str) -> Path:
    path = folder / "rules.yaml"
    path.write_text(text)
    return path


def test_by_default_only_exact_copies_are_dropped() -> None:
    rules = load_rules(None)
    assert rules == CleaningRules() and rules.duplicates.exact and not rules.look_at_text


def test_the_example_sets_rules_of_every_section(tmp_path: Path) -> None:
    rules = load_rules(Path("configs/corpus/clean.yaml"))
    assert rules == load_rules(ROOT / "configs/corpus/clean.yaml") and rules.look_at_text
    defaults = CleaningRules()
    assert all(getattr(rules, section) != getattr(defaults, section) for section in CleaningRules.model_fields)


def test_values_are_read_as_the_fields_type(tmp_path: Path) -> None:
    rules = load_rules(written(tmp_path, "lines:\nlength: {min_words: 5}\ncharacters: {max_digit_share: 2e-1}\n"))
    assert (rules.length.min_words, rules.characters.max_digit_share) == (5, 0.2)
    exact_off = load_rules(written(tmp_path, "duplicates: {exact: false}"))
    assert not exact_off.duplicates.exact and not exact_off.look_at_text


def test_all_mistakes_are_told_with_place_and_remedy(tmp_path: Path) -> None:
    text = "length: {min_word: 5}\nlines: {max_bullet_line_share: 1.5}\nreplace: {emails: maybe}\ndedup: true\n"
    with pytest.raises(ConfigError) as refused:
        load_rules(written(tmp_path, text))
    for part in (
        "length.min_word (",
        "line 1",
        "did you mean length.min_words",
        "replace.emails = maybe",
        "line 4",
        "lines.max_bullet_line_share = 1.5",
        "at most 1",
    ):
        assert part in str(refused.value)
    with pytest.raises(ConfigError, match="min_words = 9 is more than max_words = 3"):
        load_rules(written(tmp_path, "length: {min_words: 9, max_words: 3}"))
    text = "duplicates: {near: true, near_threshold: 0.999, near_permutations: 16}"
    with pytest.raises(ConfigError, match=r"near_threshold = 0\.999 .*near_permutations = 16: lower"):
        load_rules(written(tmp_path, text))
    with pytest.raises(ConfigError, match="does not exist"):
        load_rules(tmp_path / "none.yaml")


def test_every_rule_is_measured_and_stands_in_the_page() -> None:
    check_measures()
    for key, field in rule_fields().items():
        kind = ", ".join(part for part in (describe(field.annotation), limits(field)) if part)
        assert f"| `{key}` | {kind} | {str(field.default).lower()} | " in PAGE, key
    assert set(re.findall(r"^\| `(\w+\.\w+)` \|", PAGE, re.MULTILINE)) == rule_fields().keys()
