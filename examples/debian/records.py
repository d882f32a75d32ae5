"""Records of each task, made of Debian's packages."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import itemgetter

from examples.debian.packages import LANGUAGES, Package
from examples.splits import Record, arrange, identity, split_of

# Sections that say what a package is about; most others say how it is built, or in which language.
TOPICS = ("admin", "fonts", "games", "graphics", "mail", "net", "science", "sound", "text", "x11")
MAX_HELD_OUT_FAMILY = 20  # packages of a family, above which it is for training
MIN_OF_CLASS = 200  # records of a section, below which it is no class
MIN_SOURCE_WORDS = 20  # of a description that is worth a summary
MAX_SOURCE_WORDS = 250
MIN_PARAGRAPH_WORDS = 3
MAX_PARAGRAPH_WORDS = 80


def text_of(package: Package) -> str:
    """What a model reads of a package: synopsis and description, neither name nor section nor tags."""
    return "\n\n".join((package.english.synopsis, *package.english.paragraphs))


def language_model(package: Package) -> Iterator[Record]:
    """English text."""
    yield {"text": text_of(package)}


def classification(package: Package) -> Iterator[Record]:
    """Which section of the archive a package belongs to."""
    yield {"text": text_of(package), "label": package.section}


def topics(package: Package) -> Iterator[Record]:
    """The same among ten sections that say what a package is about."""
    if package.section in TOPICS:
        yield from classification(package)


def regression(package: Package) -> Iterator[Record]:
    """The decimal logarithm of the installed size in KiB."""
    if package.installed_kib:
        yield {"text": text_of(package), "value": round(math.log10(package.installed_kib), 4)}


def summarisation(package: Package) -> Iterator[Record]:
    """The one line that stands for a description."""
    if MIN_SOURCE_WORDS <= len(package.english.text.split()) <= MAX_SOURCE_WORDS:
        yield {"source": package.english.text, "target": package.english.synopsis}


def translation(language: str) -> Callable[[Package], Iterator[Record]]:
    """Paragraphs in English and in another language, where both descriptions have equally many."""

    def records(package: Package) -> Iterator[Record]:
        translated = package.translations.get(language)
        if translated is None or len(translated.paragraphs) != len(package.english.paragraphs):
            return
        for source, target in zip(package.english.paragraphs, translated.paragraphs, strict=True):
            pair = {"source": source, "target": target}
            shorter = min(len(source.split()), len(target.split()))
            # A paragraph that is the same in both was left as it was.
            if source != target and shorter >= MIN_PARAGRAPH_WORDS and longer_side(pair) <= MAX_PARAGRAPH_WORDS:
                yield pair

    return records


def longer_side(pair: Record) -> int:
    """Words of a source or of its target, whichever is longer."""
    return max(len(pair["source"].split()), len(pair["target"].split()))


# Of each file: its records, and the field that a model reads.
FILES: dict[str, tuple[Callable[[Package], Iterator[Record]], str]] = {
    "language_model": (language_model, "text"),
    "classification": (classification, "text"),
    "topics": (topics, "text"),
    "regression": (regression, "text"),
    "summarisation": (summarisation, "source"),
    **{f"translation_{language}": (translation(language), "source") for language in LANGUAGES[1:]},
}


def splits_of(packages: Iterable[Package]) -> dict[str, str]:
    """The split of each family of packages.

    A family of hundreds, such as the dictionaries of all pairs of languages, would be most of what is held out of its
    class, and its members are alike but for a word: the large ones are for training.
    """
    sizes = Counter(package.family for package in packages)
    return {family: "train" if size > MAX_HELD_OUT_FAMILY else split_of(family) for family, size in sizes.items()}


def deal_packages(packages: Sequence[Package]) -> list[tuple[Package, str]]:
    """Pairs packages with their splits, the same for all tasks.

    Args:
        packages: Those of the archive.

    Returns:
        Packages and splits, without what would be held out of one task and read in training for another one: packages
        whose text is that of a package for training.
    """
    splits = splits_of(packages)
    trained = {identity(text_of(package)) for package in packages if splits[package.family] == "train"}
    return [
        (package, splits[package.family])
        for package in packages
        if splits[package.family] == "train" or identity(text_of(package)) not in trained
    ]


def make(name: str, dealt: Sequence[tuple[Package, str]]) -> tuple[list[Record], int]:
    """Makes the records of a file.

    Args:
        name: One of FILES.
        dealt: Packages and their splits.

    Returns:
        The records in a shuffled order, each with its split, and how many copies were left out.
    """
    records_of, key = FILES[name]
    made = ({**record, "split": split} for package, split in dealt for record in records_of(package))
    records, copies = arrange(made, itemgetter(key))
    if name == "classification":
        sizes = Counter(record["label"] for record in records)
        records = [record for record in records if sizes[record["label"]] >= MIN_OF_CLASS]
    return records, copies
