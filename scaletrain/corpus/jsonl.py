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

# With these two a file is JSON lines also where it is called .json, as those of C4 and Dolma are.
_COMPRESSED = (".gz", ".zst")
JSONL_SUFFIXES = (
    *(name + packed for name in (".jsonl", ".ndjson") for packed in ("", *_COMPRESSED)),
    *(".json" + packed for packed in _COMPRESSED),
)
# What zstd --long=31 needs.
_LARGEST_WINDOW_BYTES = 1 << 31
# Four bytes can become 128 KiB, so that this becomes 128 MiB at most.
_CHUNK_BYTES = 1 << 12


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
    for number, line in read_lines(path, reading):
        text = text_of_record(line, f"{path}, line {number}", text_field)
        if text:
            yield str(number), text
        else:
            reading.skipped_documents["null" if text is None else "empty"] += 1


def read_lines(path: Path, reading: Reading) -> Iterator[tuple[int, bytes]]:
    """Reads the lines of a JSONL file that are not blank.

    Args:
        path: The file; its suffix says how it is compressed.
        reading: Where bytes read are counted.

    Yields:
        Number of the line, from 1, and the line.

    Raises:
        DataError: The file cannot be read, is damaged, or a line is too large.
    """
    number = 0
    try:
        with _decompressed(path, reading) as stream:
            while line := stream.readline(LARGEST_DOCUMENT_BYTES + 1):
                number += 1
                if len(line) > LARGEST_DOCUMENT_BYTES:
                    raise too_large(f"{path}, line {number}")
                if line.strip():
                    yield number, line
    except EOFError:
        raise DataError(f"{path} is truncated behind line {number}. Fetch or make the file again.") from None
    except (OSError, zlib.error, zstandard.ZstdError) as error:
        raise DataError(f"{path} cannot be read after line {number}: {error}. Fetch or make the file again.") from None


@contextmanager
def _decompressed(path: Path, reading: Reading) -> Iterator[BinaryIO]:
    name = path.name.lower()
    with open_counted(path, reading) as stream:
        if name.endswith(_COMPRESSED) and not stream.peek(1):
            raise EOFError
        if name.endswith(".gz"):
            with gzip.GzipFile(fileobj=stream, mode="rb") as unzipped:
                yield cast(BinaryIO, unzipped)
        elif name.endswith(".zst"):
            yield cast(BinaryIO, io.BufferedReader(_ZstdFrames(stream), 1 << 20))
        else:
            yield cast(BinaryIO, stream)


class _ZstdFrames(io.RawIOBase):
    """What zstd frames hold, one after the other; zstandard's own reader takes a cut frame for the end."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__()
        self._stream = stream
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW_BYTES)
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._compressed = b""
        self._pending = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        while not self._pending:
            compressed = self._compressed or self._stream.read(_CHUNK_BYTES)
            if not compressed and self._frame:
                raise EOFError
            if not compressed:
                return 0
            frame = self._frame or self._decompressor.decompressobj()
            self._pending = memoryview(frame.decompress(compressed))
            self._compressed, self._frame = (frame.unused_data, None) if frame.eof else (b"", frame)
        count = min(len(buffer), len(self._pending))
        buffer[:count] = self._pending[:count]
        self._pending = self._pending[count:]
        return count
