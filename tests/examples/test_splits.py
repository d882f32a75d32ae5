from collections import Counter
from operator import itemgetter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.splits import SPLITS, arrange, deal, identity, read_records, split_of, within_budget, write_records

RECORDS = st.lists(
    st.builds(
        lambda text, split: {"text": text, "split": split}, st.text("ab1 2B", max_size=4), st.sampled_from(SPLITS)
    ),
    max_size=60,
)


def test_shares_of_the_splits() -> None:
    counts = Counter(split_of(f"source-{number}") for number in range(20_000))
    # Five standard deviations of a binomial count are 212 of the test and 154 of the validation split.
    assert abs(counts["test"] - 2000) < 212
    assert abs(counts["validation"] - 1000) < 154


def test_splits_are_those_of_every_machine() -> None:
    # `printf 'split ftplib' | b2sum -l 64` prints 0ca31489642aa2dd, which is 0.049 of 2^64, and so on.
    places = {"ftplib": 0x0CA31489642AA2DD, "stat": 0x22C4B5928A4B819A, "gcc": 0xE9E09AB340F5C988}
    assert [place / 2**64 < 0.10 for place in places.values()] == [True, False, False]
    assert [place / 2**64 < 0.15 for place in places.values()] == [True, True, False]
    assert [split_of(name) for name in places] == ["test", "validation", "train"]


@given(RECORDS)
def test_no_text_is_in_two_splits_and_training_keeps_what_it_has(records: list[dict[str, str]]) -> None:
    kept, copies = arrange(records, itemgetter("text"))
    names = [identity(record["text"]) for record in kept]
    assert len(set(names)) == len(names)
    assert set(names) == {identity(record["text"]) for record in records}
    assert len(kept) + copies == len(records)
    in_training = {identity(record["text"]) for record in records if record["split"] == "train"}
    assert in_training == {identity(record["text"]) for record in kept if record["split"] == "train"}


@given(RECORDS, st.randoms())
def test_the_order_is_that_of_the_texts_alone(records: list[dict[str, str]], random) -> None:
    distinct = list({identity(record["text"]): record for record in records}.values())
    shuffled = random.sample(distinct, len(distinct))
    assert arrange(distinct, itemgetter("text")) == arrange(shuffled, itemgetter("text"))


@given(RECORDS, st.integers(0, 100), st.integers(0, 100))
def test_a_larger_budget_holds_a_smaller_one(records: list[dict[str, str]], one: int, other: int) -> None:
    numbered = [{**record, "number": number} for number, record in enumerate(records)]
    small, large = (list(within_budget(numbered, percent)) for percent in sorted((one, other)))
    assert [record for record in large if record in small] == small
    assert [record for record in small if record["split"] != "train"] == [
        record for record in numbered if record["split"] != "train"
    ]
    training = sum(record["split"] == "train" for record in numbered)
    assert abs(sum(record["split"] == "train" for record in small) - training * min(one, other) / 100) <= 0.5


def test_copies_differ_in_capitals_numbers_and_white_space_only() -> None:
    assert identity("GCC 12,\n the  compiler") == identity("gcc 11, the compiler")
    assert identity("the compiler") != identity("a compiler")


@given(st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.integers(0, 40), max_size=40))
def test_unlike_groups_are_dealt_by_their_sizes(sizes: dict[str, int]) -> None:
    splits = deal(sizes, largest=20)
    assert splits.keys() == sizes.keys()
    held = {split: sum(sizes[group] for group in sizes if splits[group] == split) for split in SPLITS}
    assert all(splits[group] == "train" for group in sizes if sizes[group] > 20)
    # The last group that is dealt to a split may reach over its share.
    assert held["test"] <= 0.10 * sum(sizes.values()) + 20
    assert held["validation"] <= 0.05 * sum(sizes.values()) + 20


@pytest.mark.parametrize("text", ["é — ß", 'quotes " and \\', "two\nlines", "\u2028"])
def test_records_are_read_as_they_were_written(tmp_path: Path, text: str) -> None:
    records = [{"text": text, "value": 1.25}, {"text": "", "value": 0}]
    write_records(tmp_path / "file.jsonl", records)
    assert read_records(tmp_path / "file.jsonl") == records
