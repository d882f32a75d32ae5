"""Documents out of folders of text files and out of JSONL files, plain or compressed."""

import gzip
import io
import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

import zstandard

from scaletrain.errors import DataError

# fmt: off
TEXT_SUFFIXES = (
    ".txt", ".text", ".md", ".rst", ".tex", ".org", ".adoc", ".html", ".xml", ".csv", ".tsv", ".json", ".yaml",
    ".yml", ".toml", ".cfg", ".ini", ".py", ".pyi", ".ipynb", ".c", ".h", ".cc", ".cpp", ".hpp", ".cs", ".go", ".rs",
    ".java", ".kt", ".scala", ".js", ".ts", ".jsx", ".tsx", ".css", ".sh", ".rb", ".php", ".pl", ".lua", ".r", ".jl",
    ".hs", ".ml", ".sql", ".swift",
)
# fmt: on
JSONL_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")


@dataclass(frozen=True)
class Document:
    """A text, and where it came from: a path relative to the corpus, with ``#line`` in a JSONL file."""

    source: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """The files of a corpus, found but not yet read.

    Attributes:
        folder: What the documents' sources are relative to.
        files: Paths below it, in the order in which they are read.
        text_field: Field of a JSONL line that holds the text.
        skipped: Files that are not read, and why; it grows while the corpus is read.
    """

    folder: Path
    files: tuple[str, ...]
    text_field: str = "text"
    skipped: dict[str, str] = field(default_factory=dict)

    def documents(self) -> Iterator[Document]:
        """Reads the documents, in an order that does not depend on the file system.

        Yields:
            Documents that are not empty. A text file is one document, a JSONL file one a line.

        Raises:
            DataError: A file cannot be read, is damaged, or a line of it holds no text.
        """
        for name in self.files:
            if name.endswith(JSONL_SUFFIXES):
                yield from _read_lines(self.folder, name, self.text_field)
                continue
            try:
                text = (self.folder / name).read_bytes().decode("utf-8")
            except OSError as error:
                raise DataError(
                    f"{self.folder / name} cannot be read: {error.strerror}. Make it readable, or move it away."
                ) from None
            except UnicodeDecodeError:
                self.skipped[name] = "not UTF-8"
                continue
            if text:
                yield Document(name, text)
            else:
                self.skipped[name] = "empty"

    def describe_skipped(self) -> str:
        """What was not read, in one line: ``3 files (2 not UTF-8, 1 of another suffix)``."""
        reasons = Counter(self.skipped.values()).most_common()
        return f"{len(self.skipped)} files ({', '.join(f'{count} {reason}' for reason, count in reasons) or 'none'})"


def find_corpus(path: Path, text_field: str = "text", suffixes: tuple[str, ...] = TEXT_SUFFIXES) -> Corpus:
    """Finds the files of a corpus.

    Args:
        path: A folder, or one file, which is read whatever its suffix.
        text_field: Field of a JSONL line that holds the text.
        suffixes: Of the files of a folder that are taken as text, besides JSONL.

    Returns:
        The corpus. Hidden files and folders, and files of other suffixes, are skipped; the latter are counted.

    Raises:
        DataError: There is nothing at ``path``, or nothing to read in it.
    """
    if path.is_file():
        return Corpus(path.parent, (path.name,), text_field)
    if not path.is_dir():
        raise DataError(f"The input {path} does not exist. Give a folder of texts, a text file or a JSONL file.")
    names, skipped = [], {}
    for folder, inner, files in os.walk(path):
        inner[:] = [name for name in inner if not name.startswith(".")]
        for file in (name for name in files if not name.startswith(".")):
            name = Path(folder, file).relative_to(path).as_posix()
            if file.lower().endswith((*suffixes, *JSONL_SUFFIXES)):
                names.append(name)
            else:
                skipped[name] = "of another suffix"
    corpus = Corpus(path, tuple(sorted(names)), text_field, skipped)
    if not names:
        raise DataError(
            f"The input {path} is empty: no file ends in {', '.join(JSONL_SUFFIXES)} or one of the suffixes of text; "
            f"skipped: {corpus.describe_skipped()}. Name the suffixes with --suffixes .abc,.def."
        )
    return corpus


def _read_lines(folder: Path, name: str, text_field: str) -> Iterator[Document]:
    path = folder / name
    number = 0
    try:
        with _decompressed(path) as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    text = _text_of(line, f"{path}, line {number}", text_field)
                    if text:
                        yield Document(f"{name}#{number}", text)
    except (OSError, EOFError, zstandard.ZstdError) as error:
        raise DataError(f"{path} cannot be read after line {number}: {error}. Fetch or make the file again.") from None


def _text_of(line: bytes, place: str, text_field: str) -> str:
    try:
        record = json.loads(line)
        text = record.get(text_field) if isinstance(record, dict) else None
        if isinstance(text, str):
            text.encode()  # a lone surrogate is valid JSON and no valid text
            return text
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not a line of JSON: {error}. Correct or remove the line.") from None
    if isinstance(record, dict) and text_field in record:
        kind = type(record[text_field]).__name__
        raise DataError(f"{place}: field {text_field!r} holds {kind}, not text. Correct or remove the line.")
    found = f"has the fields {', '.join(map(repr, record))}" if isinstance(record, dict) else "is not an object"
    raise DataError(f"{place}: no text in field {text_field!r}; the line {found}. Name the field with --text_field.")


@contextmanager
def _decompressed(path: Path) -> Iterator[BinaryIO]:
    if path.name.endswith(".gz"):
        with gzip.open(path) as unzipped:
            yield cast(BinaryIO, unzipped)
    elif path.name.endswith(".zst"):
        with (
            path.open("rb") as stream,
            zstandard.ZstdDecompressor().stream_reader(stream, read_across_frames=True) as reader,
        ):
            yield cast(BinaryIO, io.BufferedReader(reader))
    else:
        with path.open("rb") as stream:
            yield stream
