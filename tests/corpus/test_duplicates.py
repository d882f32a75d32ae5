import random
import tracemalloc

import numpy as np
import pytest

from scaletrain.corpus.duplicates import ExactDuplicates, NearDuplicates, band_keys, bands_of, digest_of
from scaletrain.corpus.rules import DuplicateRules

RULES = DuplicateRules(near=True)


def words(seed: int, count: int = 400) -> list[str]:
    source = random.Random(seed)
    return ["".join(source.choices("abcdefghij", k=6)) for _ in range(count)]


def test_exact_copies_are_known_from_the_second_on() -> None:
    seen = ExactDuplicates()
    assert [seen.is_copy(digest_of(content)) for content in (b"a", b"b", b"a", b"", b"b", b"")] == [
        False,
        False,
        True,
        False,
        True,
        True,
    ]


def test_near_copies_share_a_band_and_others_do_not() -> None:
    near = NearDuplicates()
    texts = [words(seed) for seed in range(60)]
    assert not any(near.is_copy(band_keys(" ".join(text), RULES)) for text in texts)
    # One word of 400 changed: 391 of 401 shingles in common. Half of the words changed: next to none.
    slightly = [[*text[:200], "changed", *text[201:]] for text in texts]
    half = [[word if place % 2 else word + "x" for place, word in enumerate(text)] for text in texts]
    assert all(near.is_copy(band_keys("\n".join(text).upper(), RULES)) for text in slightly)
    assert not any(near.is_copy(band_keys(" ".join(text), RULES)) for text in half)


def test_the_share_found_follows_the_formula() -> None:
    bands, rows = bands_of(RULES)
    assert bands * rows <= RULES.near_permutations
    rules = RULES.model_copy(update={"near_shingle_words": 1})
    found = 0
    for seed in range(200):
        # 320 words each, 294 of them in common, of 346 in all.
        pool = words(seed, 346)
        first, second = (band_keys(" ".join(part), rules) for part in (pool[:320], pool[26:]))
        found += bool((first == second).any())
    expected = 1 - (1 - (294 / 346) ** rows) ** bands
    assert abs(found / 200 - expected) < 4 * (expected * (1 - expected) / 200) ** 0.5


def test_signatures_are_the_same_on_every_machine() -> None:
    keys = band_keys("the quick brown fox jumps over the lazy dog", RULES)
    assert keys.dtype == np.uint64 and keys.shape == bands_of(RULES)[:1]
    assert int(keys[0]) == 10621541183613844769
    assert (band_keys("word", RULES) == band_keys(" Word\n", RULES)).all()


@pytest.mark.slow
def test_a_long_document_is_signed_in_bounded_memory() -> None:
    text = " ".join(map(str, range(300_000)))
    tracemalloc.start()
    keys = band_keys(text, RULES)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60 * len(text)  # all at once it is 350 times as much
    assert keys.tolist()[:2] == [981100560343489876, 5067754997615268098]
