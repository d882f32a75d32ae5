"""Rules that drop a document for what it is made of: its length, its kinds of characters, its lines.

Shares are of the document alone, so that a rule's answer never depends on what was read before.
"""

from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray

from scaletrain.corpus.rules import CharacterRules, CleaningRules, LengthRules, LineRules
from scaletrain.errors import ConfigError

_OTHER, _LETTER, _DIGIT, _SPACE = range(4)
_CODE_POINTS = 0x110000
_BULLETS = ("•", "‣", "▪", "◦", "●", "- ", "* ", "+ ")
_ELLIPSES = ("...", "…")

# A value that a rule is about, and whether it is computed: where its rule is off it is not.
_Measure = tuple[str, Callable[[], float]]


def broken_rule(text: str, rules: CleaningRules) -> str | None:
    """Finds the first rule that a document breaks, in the order of the rules' declaration.

    Args:
        text: The document, not empty.
        rules: What documents must be like.

    Returns:
        Key of the rule, "length.min_words" for instance, or None where the document may stay.

    Source:
        Words, mean length of words, words with a letter, hashes and ellipses, bullets and repeated lines: Rae et al.
        2021, Scaling Language Models (Gopher), appendix A1.1. Lines' lengths and the share of letters and digits: Chen
        et al. 2021, Evaluating Large Language Models Trained on Code, section 3.1.
    """
    for section, limits, measures in (
        ("length", rules.length, _lengths),
        ("characters", rules.characters, _characters),
        ("lines", rules.lines, _lines),
    ):
        active = {name: limit for name, limit in limits if limit is not None}
        if not active:
            continue
        values: dict[str, Callable[[], float]] = dict(measures(text))
        for name, limit in active.items():
            bound, _, quantity = name.partition("_")
            value = values[quantity]()
            if value < limit if bound == "min" else value > limit:
                return f"{section}.{name}"
    return None


def check_measures() -> None:
    """Raises ConfigError if a rule is declared that nothing measures; for a test."""
    for limits, measures in ((LengthRules(), _lengths), (CharacterRules(), _characters), (LineRules(), _lines)):
        unmeasured = {name.partition("_")[2] for name, _ in limits} - dict(measures("a b")).keys()
        if unmeasured:
            raise ConfigError(f"no measure for {sorted(unmeasured)}")


def _lengths(text: str) -> Iterator[_Measure]:
    yield "characters", lambda: len(text)
    yield "words", lambda: len(text.split())


def _characters(text: str) -> Iterator[_Measure]:
    counts = cache(lambda: _count_kinds(text))
    words = cache(text.split)

    def share(*kinds: int) -> float:
        return sum(int(counts()[kind]) for kind in kinds) / len(text)

    yield "letter_share", lambda: share(_LETTER)
    yield "alphanumeric_share", lambda: share(_LETTER, _DIGIT)
    yield "digit_share", lambda: share(_DIGIT)
    yield "symbol_share", lambda: share(_OTHER)
    yield "mean_word_characters", lambda: _mean(map(len, words()), len(words()))
    yield "words_with_letter_share", lambda: _mean((any(map(str.isalpha, word)) for word in words()), len(words()))
    yield "hash_or_ellipsis_per_word", lambda: _mean(map(text.count, ("#", *_ELLIPSES)), len(words()))


def _lines(text: str) -> Iterator[_Measure]:
    lines = cache(lambda: [line for line in map(str.strip, text.splitlines()) if line])
    repeated = cache(lambda: _repeated(lines()))
    yield "line_characters", lambda: max(map(len, lines()), default=0)
    yield "mean_line_characters", lambda: _mean(map(len, lines()), len(lines()))
    yield "bullet_line_share", lambda: _mean((line.startswith(_BULLETS) for line in lines()), len(lines()))
    yield "ellipsis_line_share", lambda: _mean((line.endswith(_ELLIPSES) for line in lines()), len(lines()))
    yield "repeated_line_share", lambda: len(repeated()) / max(1, len(lines()))
    yield (
        "repeated_line_character_share",
        lambda: sum(map(len, repeated())) / max(1, sum(map(len, lines()))),
    )


def _repeated(lines: list[str]) -> list[str]:
    """Every line that stood there before: all but the first of equal lines."""
    seen: set[str] = set()
    found = []
    for line in lines:
        if line in seen:
            found.append(line)
        seen.add(line)
    return found


def _mean(values: "Iterator[int] | Iterator[bool] | map[int]", count: int) -> float:
    return sum(values) / max(1, count)


def _count_kinds(text: str) -> NDArray[np.int64]:
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    return np.bincount(_kinds()[codes], minlength=4)


@cache
def _kinds() -> NDArray[np.uint8]:
    """Kind of every code point (0x110000,), uint8, as Python's own Unicode tables have it."""
    table = np.full(_CODE_POINTS, _OTHER, dtype=np.uint8)
    for code in range(_CODE_POINTS):
        character = chr(code)
        if character.isalpha():
            table[code] = _LETTER
        elif character.isdigit():
            table[code] = _DIGIT
        elif character.isspace():
            table[code] = _SPACE
    return table
