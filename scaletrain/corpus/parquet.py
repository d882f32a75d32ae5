"""Reads Parquet files: a document a row, batch by batch."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from scaletrain.corpus.reading import LARGEST_DOCUMENT_BYTES, Reading, too_large
from scaletrain.errors import ConfigError, DataError

_BATCH_ROWS = 256


def read_parquet(path: Path, text_field: str, reading: Reading) -> Iterator[tuple[str, str]]:
    """Reads one column of a Parquet file.

    Args:
        path: The file.
        text_field: Column that holds the text.
        reading: Where bytes read and what is left out are counted.

    Yields:
        Number of the row, from 1, and its text, which is not empty.

    Raises:
        DataError: The file is damaged, or has no such column of text.
        ConfigError: pyarrow is not installed.
    """
    for row, record in read_rows(path, (text_field,), reading, partial(_check_column, text_field=text_field)):
        text = record[text_field]
        if text and len(text) > LARGEST_DOCUMENT_BYTES:
            raise too_large(f"{path}, row {row}")
        if text:
            yield str(row), text
        else:
            reading.skipped_documents["empty" if text == "" else "null"] += 1


def read_rows(
    path: Path,
    columns: Sequence[str],
    reading: Reading,
    check: Callable[[Path, Any, Any], None] = lambda path, schema, pyarrow: None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Reads some columns of a Parquet file.

    Args:
        path: The file.
        columns: Names of those that are wanted, as far as they are there.
        reading: Where bytes read are counted.
        check: Raises where the file's schema is not what is wanted.

    Yields:
        Number of the row, from 1, and its values by column.

    Raises:
        DataError: The file is damaged, or ``check`` raised.
        ConfigError: pyarrow is not installed.
    """
    pyarrow, parquet = _pyarrow()
    row = 0
    try:
        with parquet.ParquetFile(path) as file:
            check(path, file.schema_arrow, pyarrow)
            there = [name for name in columns if name in file.schema_arrow.names]
            size, rows = path.stat().st_size, max(1, file.metadata.num_rows)
            before = reading.bytes
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=there):
                for record in batch.to_pylist():
                    row += 1
                    yield row, record
                reading.bytes = before + size * row // rows
            reading.bytes = before + size
    except (OSError, pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read after row {row}: {error}. Fetch or make the file again.") from None


def _check_column(path: Path, schema: Any, pyarrow: Any, text_field: str) -> None:
    if text_field not in schema.names:
        raise DataError(
            f"{path}: no column {text_field!r}; there are {', '.join(map(repr, schema.names)) or 'none'}. Name "
            "the column with --text_field."
        )
    if schema.names.count(text_field) > 1:
        raise DataError(f"{path}: several columns are named {text_field!r}. Rename all but one.")
    kind = schema.field(text_field).type
    plain = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    if not any(getattr(pyarrow.types, f"is_{name}")(plain) for name in ("string", "large_string", "string_view")):
        raise DataError(f"{path}: column {text_field!r} holds {kind}, not text. Name another with --text_field.")


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ConfigError(
            "The input holds Parquet files, but pyarrow is not installed. Install it with pip install "
            "'scaletrain[corpus]'."
        ) from None
    return pyarrow, pyarrow.parquet
