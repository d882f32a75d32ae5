"""What a build did with the documents: counted while it runs, written beside the corpus, printed at the end."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from scaletrain.corpus.reading import describe_skipped
from scaletrain.corpus.worker import Worked
from scaletrain.files import whole_file

FILE_NAME = "report.json"


@dataclass
class Report:
    """Counts of documents and of bytes of text in UTF-8.

    Attributes:
        read: Documents and bytes of the input.
        removed: Documents and bytes removed, by rule.
        kept: Documents and bytes that are in the corpus, by split, as the rules left them.
        replaced: Placeholders in what was kept.
        skipped: What was not read as a document, files and parts of them, by reason.
        cut: Texts of examples in what was kept that were longer than they may be, by name.
    """

    read: Counter[str] = field(default_factory=Counter)
    removed: dict[str, Counter[str]] = field(default_factory=dict)
    kept: dict[str, Counter[str]] = field(default_factory=dict)
    replaced: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    cut: Counter[str] = field(default_factory=Counter)

    def add_read(self, n_bytes: int) -> None:
        self.read.update(documents=1, bytes=n_bytes)

    def add_removed(self, rule: str, n_bytes: int) -> None:
        self.removed.setdefault(rule, Counter()).update(documents=1, bytes=n_bytes)

    def add_kept(self, worked: Worked) -> None:
        self.kept.setdefault(worked.split, Counter()).update(documents=1, bytes=worked.n_bytes)
        self.replaced.update(worked.replaced or {})
        self.cut.update(worked.cut)

    def write(self, folder: Path) -> None:
        """Writes the report as JSON into the folder of the corpus; equal builds make equal files."""
        content = {
            "read": dict(self.read),
            "skipped": dict(self.skipped),
            "removed": {rule: dict(counts) for rule, counts in self.removed.items()},
            "replaced": dict(self.replaced),
            "cut": dict(self.cut),
            "kept": {split: dict(counts) for split, counts in self.kept.items()},
        }
        with whole_file(folder / FILE_NAME) as stream:
            stream.write(json.dumps(content, indent=1, sort_keys=True).encode() + b"\n")

    def lines(self) -> list[str]:
        """The report for a person."""
        found = [f"read: {_amount(self.read)}"]
        for rule, counts in sorted(self.removed.items(), key=lambda item: (-item[1]["documents"], item[0])):
            found.append(f"removed by {rule}: {_amount(counts)}")
        if self.replaced:
            found.append(f"replaced: {', '.join(f'{count:,} {kind}' for kind, count in sorted(self.replaced.items()))}")
        if self.cut:
            found.append(f"cut: {', '.join(f'{count:,} {name}' for name, count in sorted(self.cut.items()))}")
        return [*found, f"skipped: {describe_skipped(self.skipped)}"]


def read_report(folder: Path) -> Report:
    """Reads the report of a corpus."""
    content = json.loads((folder / FILE_NAME).read_bytes())
    return Report(
        Counter(content["read"]),
        {rule: Counter(counts) for rule, counts in content["removed"].items()},
        {split: Counter(counts) for split, counts in content["kept"].items()},
        Counter(content["replaced"]),
        Counter(content["skipped"]),
        Counter(content.get("cut", {})),  # older builds knew nothing to cut
    )


def _amount(counts: Mapping[str, int]) -> str:
    return f"{counts.get('documents', 0):,} documents, {counts.get('bytes', 0) / 1e6:,.1f} MB"
