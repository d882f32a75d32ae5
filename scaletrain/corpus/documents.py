"""Documents out of folders of text, JSONL, Parquet and WebDataset files."""

import logging
import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scaletrain.corpus.examples import ExampleOptions, parse_record, take_example
from scaletrain.corpus.journal import holds_corpus
from scaletrain.corpus.jsonl import JSONL_SUFFIXES, read_jsonl, read_lines
from scaletrain.corpus.parquet import read_parquet, read_rows
from scaletrain.corpus.reading import LARGEST_DOCUMENT_BYTES, Reading, describe_skipped
from scaletrain.corpus.tar import read_tar
from scaletrain.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

# fmt: off
TEXT_SUFFIXES = (
    ".txt", ".text", ".md", ".rst", ".tex", ".org", ".adoc", ".html", ".xml", ".csv", ".tsv", ".json", ".yaml",
    ".yml", ".toml", ".cfg", ".ini", ".py", ".pyi", ".ipynb", ".c", ".h", ".cc", ".cpp", ".hpp", ".cs", ".go", ".rs",
    ".java", ".kt", ".scala", ".js", ".ts", ".jsx", ".tsx", ".css", ".sh", ".rb", ".php", ".pl", ".lua", ".r", ".jl",
    ".hs", ".ml", ".sql", ".swift",
)
# fmt: on
_PARQUET = ".parquet"
_READERS = {**dict.fromkeys(JSONL_SUFFIXES, read_jsonl), _PARQUET: read_parquet, ".tar": read_tar}
_MANY = tuple(_READERS)
_FILES_TOLD = 3


@dataclass(frozen=True)
class Document:
    """A text, or the one that stands for an example.

    Attributes:
        source: Where it came from: a path relative to the corpus, with ``#line``, ``#row`` or ``#key`` inside.
        text: The text.
        split: Where it belongs; None where its text decides.
    """

    source: str
    text: str
    split: str | None = None


@dataclass(frozen=True)
class Corpus:
    """The files of a corpus, found but not yet read.

    Attributes:
        folder: What the documents' sources are relative to.
        files: Paths below it, in the order in which they are read, with size in bytes and time of change in
            nanoseconds.
        text_field: Field of JSONL, JSON and Parquet that holds the text.
        reading: How far it is read, and what was left out.
        examples: What the records of the files are; None where they hold texts.
    """

    folder: Path
    files: Mapping[str, tuple[int, int]]
    text_field: str = "text"
    reading: Reading = field(default_factory=Reading)
    examples: ExampleOptions | None = None

    @property
    def size(self) -> int:
        """Of all files together, in bytes."""
        return sum(size for size, _ in self.files.values())

    def documents(self) -> Iterator[Document]:
        """Reads the documents, in an order that does not depend on the file system.

        Yields:
            Documents that are not empty. A text file is one document; the others hold many.

        Raises:
            DataError: A file cannot be read, is damaged, or a part of it holds no text or no example.
        """
        self.reading.start_again()
        for name, (size, _) in self.files.items():
            if self.examples is not None:
                yield from self._examples(name, self.examples)
                continue
            reader = next((_READERS[suffix] for suffix in _MANY if name.lower().endswith(suffix)), None)
            if reader is not None:
                for place, text in reader(self.folder / name, self.text_field, self.reading):
                    yield Document(f"{name}#{place}", text)
                continue
            content = self._read_text(name, size)
            self.reading.bytes += size
            if content:
                yield Document(name, content)

    def skipped(self) -> dict[str, int]:
        """What was not read: how many files and parts of files, by reason."""
        return dict(sorted((Counter(self.reading.skipped_files.values()) + self.reading.skipped_documents).items()))

    def log_skipped_files(self) -> None:
        """Names the first files of each reason in the log."""
        names: dict[str, list[str]] = {}
        for name, reason in self.reading.skipped_files.items():
            names.setdefault(reason, []).append(name)
        for reason, found in sorted(names.items()):
            more = f" and {len(found) - _FILES_TOLD} more" if len(found) > _FILES_TOLD else ""
            logger.info("skipped, %s: %s%s", reason, ", ".join(found[:_FILES_TOLD]), more)

    def _examples(self, name: str, options: ExampleOptions) -> Iterator[Document]:
        path = self.folder / name
        for number, record, place in _records(path, options.columns, self.reading):
            taken = take_example(record, options.format, place)
            if isinstance(taken, str):
                self.reading.skipped_documents[taken] += 1
            else:
                yield Document(f"{name}#{number}", taken.text, taken.split)

    def _read_text(self, name: str, size: int) -> str | None:
        skipped = self.reading.skipped_files
        if size > LARGEST_DOCUMENT_BYTES:
            skipped[name] = f"larger than {LARGEST_DOCUMENT_BYTES >> 20} MiB"
            return None
        try:
            text = (self.folder / name).read_bytes().decode("utf-8")
        except OSError as error:
            raise DataError(
                f"{self.folder / name} cannot be read: {error.strerror}. Make it readable, or move it away."
            ) from None
        except UnicodeDecodeError:
            skipped[name] = "not UTF-8"
            return None
        if not text:
            skipped[name] = "empty"
        return text


def _records(path: Path, columns: Sequence[str], reading: Reading) -> Iterator[tuple[int, Any, str]]:
    """Each record with its number, from 1, and where it stands."""
    if path.name.lower().endswith(_PARQUET):
        for row, record in read_rows(path, columns, reading):
            yield row, record, f"{path}, row {row}"
        return
    for number, line in read_lines(path, reading):
        place = f"{path}, line {number}"
        yield number, parse_record(line, place), place


def find_corpus(
    path: Path,
    text_field: str = "text",
    suffixes: tuple[str, ...] = TEXT_SUFFIXES,
    exclude: Path | None = None,
    examples: ExampleOptions | None = None,
) -> Corpus:
    """Finds the files of a corpus.

    Args:
        path: A folder, or one file, which is read as text where its suffix says nothing else. A folder may be a corpus
            itself; corpora in it are passed by.
        text_field: Field of JSONL, JSON and Parquet that holds the text.
        suffixes: Of the files of a folder that are taken as text, besides JSONL, Parquet and tar.
        exclude: A folder that is passed by: what is built must not be read.
        examples: What the records are, where they are not texts; then only JSONL and Parquet are read.

    Returns:
        The corpus. Hidden files and folders are passed by; other files that are not read are counted, and so are
        folders that a build wrote.

    Raises:
        DataError: There is nothing at ``path``, or nothing to read in it.
        ConfigError: ``exclude`` is ``path``.
    """
    if exclude is not None and path.exists() and exclude.resolve() == path.resolve():
        raise ConfigError(f"--out {exclude} is the input. Give another folder, so that what is built is not read.")
    read = (*suffixes, *_MANY) if examples is None else (*JSONL_SUFFIXES, _PARQUET)
    if path.is_file():
        if examples is not None and not path.name.lower().endswith(read):
            raise DataError(f"The input {path} holds no records: its name must end in {', '.join(read)}.")
        return Corpus(path.parent, {path.name: _identity(path.stat())}, text_field, examples=examples)
    if not path.is_dir():
        state = "is neither a file nor a folder" if path.exists() else "does not exist"
        raise DataError(f"The input {path} {state}. Give a folder of texts, or a text, JSONL, Parquet or tar file.")
    files, reading = _walk(path, read, exclude.resolve() if exclude else None)
    corpus = Corpus(path, files, text_field, reading, examples)
    if not corpus.files:
        skipped = f"skipped: {describe_skipped(corpus.skipped())}"
        if examples is not None:
            raise DataError(f"The input {path} is empty: no file ends in {', '.join(read)}; {skipped}.")
        raise DataError(
            f"The input {path} is empty: no file ends in {', '.join(_MANY)} or one of the suffixes of text; {skipped}. "
            "Name the suffixes with --suffixes .abc,.def."
        )
    return corpus


def _walk(path: Path, suffixes: tuple[str, ...], exclude: Path | None) -> tuple[dict[str, tuple[int, int]], Reading]:
    found: dict[str, tuple[int, int]] = {}
    reading = Reading()
    for folder, inner, files in os.walk(path, onerror=_refuse):
        visible = [name for name in inner if not name.startswith(".") and Path(folder, name).resolve() != exclude]
        inner.clear()
        for name in visible:
            if Path(folder, name).is_symlink():  # not followed: it could lead round in a circle
                reading.skipped_files[Path(folder, name).relative_to(path).as_posix()] = "link to a folder"
            elif holds_corpus(Path(folder, name)):
                reading.skipped_files[Path(folder, name).relative_to(path).as_posix()] = "a corpus"
            else:
                inner.append(name)
        for file in (name for name in files if not name.startswith(".")):
            name = Path(folder, file).relative_to(path).as_posix()
            reason, identity = _look_at(Path(folder, file), file.lower().endswith(suffixes))
            if identity is not None:
                found[name] = identity
            else:
                reading.skipped_files[name] = reason
    return dict(sorted(found.items())), reading


def _look_at(path: Path, has_suffix: bool) -> tuple[str, tuple[int, int] | None]:
    if not has_suffix:
        return "of another suffix", None
    try:
        status = path.stat()
    except OSError:
        return "dangling link", None
    if not stat.S_ISREG(status.st_mode):
        return "no plain file", None  # a FIFO would be waited on forever
    return "", _identity(status)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def _refuse(error: OSError) -> None:
    raise DataError(f"The folder {error.filename} cannot be read: {error.strerror}. Make it readable, or move it away.")
