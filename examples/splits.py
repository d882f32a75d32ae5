"""Which records are for training and which are held out, in which order they stand, and how they are written.

Everything hangs on hashes of names and texts: no state, no random generator, the same on every machine.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]

SPLITS = ("train", "validation", "test")
VALIDATION_SHARE = 0.05
TEST_SHARE = 0.10
BUDGETS_PERCENT = (1, 10)


def split_of(group: str) -> str:
    """The split of all records of a group.

    Args:
        group: What must not be torn apart, such as a source package.

    Returns:
        One of SPLITS: 85 % of all groups are for training, 5 % for validation and 10 % for the test.
    """
    place = _hash("split", group) / 2**64
    if place < TEST_SHARE:
        return "test"
    return "validation" if place < TEST_SHARE + VALIDATION_SHARE else "train"


def deal(sizes: Mapping[str, int], largest: int) -> dict[str, str]:
    """The splits of few groups of unlike sizes, of which hashes alone would make splits of any size.

    Args:
        sizes: Records of each group.
        largest: Size above which a group is for training, since it would be most of what is held out.

    Returns:
        The split of each group: in the order of hashes they go to the test until it has its share, then to validation.
    """
    missing = {"test": TEST_SHARE * sum(sizes.values()), "validation": VALIDATION_SHARE * sum(sizes.values())}
    splits = {}
    for group in sorted(sizes, key=lambda group: (_hash("split", group), group)):
        wanted = [split for split in missing if missing[split] > 0 and sizes[group] <= largest]
        splits[group] = wanted[0] if wanted else "train"
        if wanted:
            missing[wanted[0]] -= sizes[group]
    return splits


def identity(text: str) -> str:
    """What a text is, apart from capitals, numbers and white space: texts with the same identity are copies."""
    return re.sub(r"\d+", "0", " ".join(text.casefold().split()))


def arrange(records: Iterable[Record], text_of: Callable[[Record], str]) -> tuple[list[Record], int]:
    """Drops copies, and shuffles what stays.

    A text that is in several splits stays in the training split alone: what is held out is then new to the model.
    The order is that of a hash of the texts: the first records are a sample, and a longer sample holds a shorter one.

    Args:
        records: Each with a `split`.
        text_of: The text by which a record is a copy of another one.

    Returns:
        The records in a shuffled order, and how many were dropped.
    """
    listed = sorted(records, key=lambda record: SPLITS.index(record["split"]))
    kept: dict[str, Record] = {}
    for record in listed:
        kept.setdefault(identity(text_of(record)), record)
    order = sorted(kept, key=lambda text: (_hash("order", text), text))
    return [kept[text] for text in order], len(listed) - len(kept)


def within_budget(records: Sequence[Record], percent: int) -> Iterator[Record]:
    """All held-out records, and the first `percent` of those for training: a larger budget holds a smaller one."""
    training = sum(record["split"] == "train" for record in records)
    left = round(training * percent / 100)
    for record in records:
        if record["split"] != "train":
            yield record
        elif left:
            left -= 1
            yield record


def apart(name: str, records: Iterable[Record]) -> dict[str, list[Record]]:
    """Texts to pretrain on in a file of their own, so that what is held out of a task cannot be read by mistake.

    Args:
        name: Of the file for training.
        records: With a `split`.

    Returns:
        The records of each of two files by its name.
    """
    files: dict[str, list[Record]] = {name: [], f"{name}_held_out": []}
    for record in records:
        files[name if record["split"] == "train" else f"{name}_held_out"].append(record)
    return files


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Writes JSON lines."""
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def read_records(path: Path) -> list[Record]:
    """Reads JSON lines."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def table(counts: dict[str, Counter[str]]) -> str:
    """The numbers of records by file and split, as a table of Markdown."""
    lines = ["| file | " + " | ".join(SPLITS) + " |", "|---|" + "---:|" * len(SPLITS)]
    for name, of_split in counts.items():
        lines.append(f"| {name} | " + " | ".join(f"{of_split[split]:,}" for split in SPLITS) + " |")
    return "\n".join(lines)


def _hash(purpose: str, text: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{purpose} {text}".encode(), digest_size=8).digest())
