"""Reads JSONL files, plain or compressed: a document a line."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import zstandard

from scaletrain.corpus.reading import LARGEST_DOCUMENT_BYTES, Reading, open_counted, text_of_record, too_large
from scaletrain.errors import DataError

JSONL_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")


def read_jsonl(path: Path, text_field: str, reading: Reading) -> Iterator[tuple[str, str]]:
    """Reads the texts of a JSONL file.

    Args:
        path: The file; its suffix says how it is compressed.
        text_field: Field of a line's object that holds the text.
        reading: Where bytes read and what is left out are counted.

    Yields:
        Number of the line, from 1, and its text, which is not empty.

    Raises:
        DataError: The file cannot be read, is damaged, or a line of it holds no text.
    """
    number = 0
    try:
        with _decompressed(path, reading) as stream:
            while line := stream.readline(LARGEST_DOCUMENT_BYTES + 1):
                number += 1
                if len(line) > LARGEST_DOCUMENT_BYTES:
                    raise too_large(f"{path}, line {number}")
                if not line.strip():
                    continue
                text = text_of_record(line, f"{path}, line {number}", text_field)
                if text:
                    yield str(number), text
                else:
                    reading.skipped_documents["empty"] += 1
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise DataError(f"{path} cannot be read after line {number}: {error}. Fetch or make the file again.") from None


@contextmanager
def _decompressed(path: Path, reading: Reading) -> Iterator[BinaryIO]:
    with open_counted(path, reading) as stream:
        if path.name.endswith(".gz"):
            with gzip.GzipFile(fileobj=stream, mode="rb") as unzipped:
                yield cast(BinaryIO, unzipped)
        elif path.name.endswith(".zst"):
            with zstandard.ZstdDecompressor().stream_reader(stream, read_across_frames=True) as reader:
                yield cast(BinaryIO, io.BufferedReader(reader, 1 << 20))
        else:
            yield cast(BinaryIO, stream)
