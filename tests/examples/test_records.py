import math
import re
from collections import Counter
from pathlib import Path

import pytest

from examples.debian.packages import Package, read_packages
from examples.debian.records import (
    FILES,
    MAX_HELD_OUT_FAMILY,
    MAX_PARAGRAPH_WORDS,
    MIN_OF_CLASS,
    TOPICS,
    deal_packages,
    make,
    splits_of,
)
from examples.splits import SPLITS, identity
from tests.examples.invented_lists import Entry, write_lists

Dealt = tuple[Package, str]

BOILERPLATE = "This package holds the files that everybody needs for the work with all of the others at hand."


def letters(number: int) -> str:
    """A word for a number, since copies may differ in their digits."""
    return "".join(chr(ord("a") + int(digit)) for digit in str(number))


def described(words: str) -> str:
    return (
        f"tool of source {words}\n It is the program of source {words} and has more to say of it than a line has,\n"
        f" so that it is worth a summary.\n .\n {BOILERPLATE}"
    )


@pytest.fixture(scope="module")
def dealt(tmp_path_factory: pytest.TempPathFactory) -> list[Dealt]:
    """Two packages of each of 700 sources, whose texts name the source and share a paragraph with all others."""
    entries = []
    for number in range(700):
        word = letters(number)
        section = TOPICS[number % 2] if number < 650 else "rare"
        english = described(word)
        italian = english.replace("the program of", "il programma di").replace("This package holds", "Contiene")
        entries.append(Entry(word, section, number, english, italian))
        entries.append(Entry(f"{word}-data", section, 5, f"{english}\n .\n Data of source {word}.", italian, word))
    return deal_packages(read_packages(write_lists(tmp_path_factory.mktemp("lists"), entries)))


@pytest.mark.parametrize("name", ["language_model", "classification", "topics", "regression", "summarisation"])
def test_neither_a_source_nor_a_text_is_in_two_splits(dealt: list[Dealt], name: str) -> None:
    records, _ = make(name, dealt)
    key = FILES[name][1]
    assert len({identity(record[key]) for record in records}) == len(records)
    found = {(re.findall(r"source (\w+)", record[key])[0], record["split"]) for record in records}
    assert len(found) == len({source for source, _ in found}) > 500
    assert {split for _, split in found} == set(SPLITS)


def test_a_paragraph_that_many_packages_share_is_for_training(dealt: list[Dealt]) -> None:
    records, copies = make("translation_it", dealt)
    shared = [record for record in records if record["source"] == BOILERPLATE]
    assert shared == [{"source": BOILERPLATE, "target": f"Contiene {BOILERPLATE[19:]}", "split": "train"}]
    # Only the first package of a source has as many paragraphs in both languages; its own differs from all others.
    assert len(records) == 701
    assert copies == 699


def test_what_a_class_is(dealt: list[Dealt]) -> None:
    labels = Counter(record["label"] for record in make("classification", dealt)[0])
    assert labels == {"admin": 650, "fonts": 650}  # the 100 of the section "rare" are too few
    assert MIN_OF_CLASS > 100


def test_texts_hold_no_label_and_no_name(tmp_path: Path) -> None:
    entry = Entry("zathura-djvu", "x11", 1000, "document viewer\n Opens files.")
    dealt = deal_packages(read_packages(write_lists(tmp_path, [entry])))
    text = "document viewer\n\nOpens files."
    split = dealt[0][1]
    assert make("topics", dealt)[0] == [{"text": text, "label": "x11", "split": split}]
    assert make("regression", dealt)[0] == [{"text": text, "value": 3.0, "split": split}]
    assert make("language_model", dealt)[0] == [{"text": text, "split": split}]
    assert make("classification", dealt)[0] == []


def test_a_package_without_a_size_has_no_logarithm(dealt: list[Dealt]) -> None:
    records, _ = make("regression", dealt)
    assert len(records) == 1399
    assert max(record["value"] for record in records) == round(math.log10(699), 4)


def test_a_text_of_training_is_held_out_of_no_task(tmp_path: Path) -> None:
    # Ten packages of a section that is no topic, and ten of one, by the same text: some of the pairs fall apart.
    entries = [
        Entry(f"{letters(number)}-{section}", section, 1, f"tool {letters(number)}")
        for number in range(200)
        for section in ("libs", "mail")
    ]
    dealt = deal_packages(read_packages(write_lists(tmp_path, entries)))
    pretraining = {record["text"] for record in make("language_model", dealt)[0] if record["split"] == "train"}
    topics, _ = make("topics", dealt)
    assert not pretraining & {record["text"] for record in topics if record["split"] != "train"}
    assert {record["label"] for record in topics} == {"mail"}
    assert 150 < len(topics) < 200  # those whose twin is for training are in no split


def test_large_families_are_for_training(tmp_path: Path) -> None:
    sizes = {letters(number): MAX_HELD_OUT_FAMILY + number % 2 for number in range(60)}
    entries = [
        Entry(f"{word}-{letters(n)}", "net", 1, f"{word} {letters(n)}", source=word)
        for word, size in sizes.items()
        for n in range(size)
    ]
    splits = splits_of(read_packages(write_lists(tmp_path, entries)))
    assert {splits[word] for word, size in sizes.items() if size > MAX_HELD_OUT_FAMILY} == {"train"}
    assert {splits[word] for word, size in sizes.items() if size <= MAX_HELD_OUT_FAMILY} == set(SPLITS)


def test_pairs_that_teach_nothing_are_left_out(tmp_path: Path) -> None:
    long = " ".join(["word"] * (MAX_PARAGRAPH_WORDS + 1))
    english = f"short\n Some words for all.\n .\n Left in English here.\n .\n Two words.\n .\n {long}"
    italian = f"breve\n Parole per tutti.\n .\n Left in English here.\n .\n Due parole qui.\n .\n {long} e"
    dealt = deal_packages(read_packages(write_lists(tmp_path, [Entry("a", "net", 1, english, italian)])))
    pairs = [(record["source"], record["target"]) for record in make("translation_it", dealt)[0]]
    assert pairs == [("Some words for all.", "Parole per tutti.")]
    assert make("summarisation", dealt)[0][0]["target"] == "short"
    assert make("translation_de", dealt)[0] == []
