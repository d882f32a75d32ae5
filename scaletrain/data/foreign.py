"""Documents of shards that were made elsewhere: out of the tar into tokens, the same when counted and when trained on.

A document is one member of a sample: text (``txt``), text under a key of a JSON object (``json``), or tokens that are
ready (``npy``), each possibly compressed (``txt.gz``). The shard may come from a stranger: what a member claims is
limited before it is believed, nothing is unpickled, and nothing depends on more than the member's bytes and the
tokenizer.
"""

import fnmatch
import gzip
import io
import json
import os
import re
import zlib
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from scaletrain.data.manifest import Content
from scaletrain.data.stored_array import LARGEST_HEADER, parse_array_header
from scaletrain.data.tokenizer import Borders, token_byte_lengths, vocabulary_rows
from scaletrain.errors import ConfigError, DataError

# Bytes of a member when decompressed. Encoding takes up to 300 times the bytes of a text, a JSON of brackets 25 times.
_LARGEST = {"txt": 16 << 20, "json": 32 << 20, "npy": 256 << 20}
_LARGEST_TEXT = _LARGEST["txt"]
_MOST_DECOMPRESSED = 1032  # bytes that deflate makes of one
# Bytes of text out of one: a byte that is no UTF-8 becomes three, a ligature by NFKC eleven times as many.
_MOST_GROWTH = 16
_MOST_BORDERS = 3  # tokens beside those of the bytes: where a document begins and ends, a space before the first word
_SURROGATES = re.compile("[\ud800-\udfff]")


class UnusableDocument(DataError):
    """A document that gives no tokens.

    Attributes:
        reason: The kind of the trouble, of which there are few.
        is_absent: Whether there is nothing to read, rather than something wrong: an empty text, a JSON without the key.
    """

    def __init__(self, reason: str, message: str, is_absent: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.is_absent = is_absent

    def __reduce__(self) -> tuple[type["UnusableDocument"], tuple[str, str, bool]]:
        return UnusableDocument, (self.reason, str(self), self.is_absent)


class Decoded(NamedTuple):
    """Tokens of a document (n,), with those that mark its borders, and the bytes of its text in UTF-8."""

    tokens: NDArray[np.unsignedinteger]
    n_bytes: int


def content_of(field: str, key: str | None = None) -> Content:
    """What a sample holds, as a user names it.

    Args:
        field: Of the member: ``txt``, ``json``, ``npy``, these behind other words (``tokens.npy``) and with ``.gz``; a
            pattern as in a shell (``*.npy``) takes the one member that it fits.
        key: Of the JSON object.

    Returns:
        The content.

    Raises:
        ConfigError: The field cannot be read, or key and field do not go together.
    """
    content = Content(field=field.lower().removeprefix("."), key=key)
    kind = kind_of(content)
    if kind is None:
        raise ConfigError(
            f"--field is {field!r}, but must end in txt, json or npy, with or without .gz behind it. Pickles, archives "
            "and pictures are not read."
        )
    if (kind == "json") != (key is not None):
        given = f"and --key {key!r} is given" if key is not None else "and no --key"
        raise ConfigError(
            f"--field is {field!r}, {given}; a key belongs to a JSON object, which needs one (--key text)."
        )
    return content


def kind_of(content: Content) -> str | None:
    """How a document is decoded: ``txt``, ``json`` or ``npy``; None for what cannot be."""
    last = content.field.removesuffix(".gz").rpartition(".")[2]
    return last if last in _LARGEST else None


def fits(field: str, content: Content) -> bool:
    """Whether a member's field, in lower case, is the wanted one or fits the pattern; ``npy`` fits ``*.npy`` too."""
    return field == content.field or any(fnmatch.fnmatchcase(name, content.field) for name in (field, f".{field}"))


def most_tokens(content: Content, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bounds the tokens of documents by the bytes of their members: in a byte-level tokenizer each stands for a byte.

    Args:
        content: What a document is.
        sizes: Bytes of the members (documents,), int64, 0 or more.

    Returns:
        The most tokens that each can give (documents,), int64.
    """
    kind = kind_of(content)
    largest = _LARGEST.get(kind or "", 0) + LARGEST_HEADER
    held = np.minimum(sizes, largest)  # before it is multiplied, so that nothing wraps around
    if content.field.endswith(".gz"):
        held = np.minimum(held * _MOST_DECOMPRESSED, largest)
    return np.asarray(held * (1 if kind == "npy" else _MOST_GROWTH) + _MOST_BORDERS)


class DocumentDecoder:
    """Turns members of a tar into tokens. It keeps no state, so that a fork or a copy of it decodes the same."""

    def __init__(
        self,
        content: Content,
        tokenizer: Tokenizer,
        borders: Borders,
        dtype: np.dtype[np.unsignedinteger],
        vocab_size: int,
    ) -> None:
        """Reads nothing yet.

        Args:
            content: What a document is.
            tokenizer: Makes tokens of text; of ready tokens it tells how many bytes they stand for.
            borders: Tokens that mark where a document begins and ends.
            dtype: Of the tokens that are returned.
            vocab_size: Tokens are below it.

        Raises:
            DataError: Documents of that content cannot be decoded, by any tokenizer or by this one.
        """
        kind = kind_of(content)
        if kind is None or (kind == "json") != (content.key is not None):
            raise DataError(
                f"The corpus has documents in field {content.field!r} with key {content.key!r}; only txt, json with a "
                "key, and npy are read. Index the shards again with tools/make_shards.py index."
            )
        if vocabulary_rows(tokenizer) != vocab_size:
            raise DataError(
                f"The tokenizer needs {vocabulary_rows(tokenizer)} rows, the manifest's vocab_size is {vocab_size}. "
                "Index the shards again with tools/make_shards.py index."
            )
        if (json.loads(tokenizer.to_str()).get("model") or {}).get("dropout"):
            raise DataError(
                "The tokenizer drops merges at random (its model has 'dropout'), so that the same text gives other "
                "tokens each time. Set it to null in tokenizer.json."
            )
        self._content = content
        self._kind = kind
        self._tokenizer = tokenizer
        self._borders = borders
        self._dtype = dtype
        self._vocab_size = vocab_size

    def read(self, descriptor: int, offset: int, size: int, n_tokens: int, shown: str) -> NDArray[np.unsignedinteger]:
        """Reads a document that was indexed.

        Args:
            descriptor: Of the open tar; read by position.
            offset: First byte of the member in it.
            size: Of the member, in bytes.
            n_tokens: What the index says that it gives.
            shown: The tar's path, for messages.

        Returns:
            Its tokens (n_tokens,).

        Raises:
            DataError: It cannot be read or decoded, or gives another number of tokens.
        """
        tokens = self.decode(descriptor, offset, size, f"{shown}, document at byte {offset}").tokens
        if len(tokens) != n_tokens:
            raise DataError(
                f"{shown}: the document at byte {offset} gives {len(tokens)} tokens, its index says {n_tokens}. The "
                "tokenizer, or the version of its library, is another than when the shards were indexed; index them "
                "again with tools/make_shards.py index."
            )
        return tokens

    def decode(self, descriptor: int, offset: int, size: int, shown: str) -> Decoded:
        """Reads a document and makes tokens of it.

        Args:
            descriptor: Of the open tar; read by position.
            offset: First byte of the member in it.
            size: Of the member, in bytes.
            shown: Name of shard and document, for messages.

        Returns:
            Of text: the token that begins a document where the tokenizer puts one, the text's, and the one that ends
            a document. Of ready tokens: those, and the one that ends a document if the last is another.

        Raises:
            UnusableDocument: It is too large, damaged, or of another form.
            DataError: The tar ends before it does, or cannot be read.
        """
        largest = _LARGEST[self._kind] + LARGEST_HEADER
        if not 0 <= size <= largest:
            raise self._too_large(shown)
        try:
            raw = os.pread(descriptor, size, offset)
        except OSError as error:
            raise DataError(f"{shown} cannot be read: {error.strerror}.") from None
        if len(raw) != size:
            raise DataError(f"{shown} ends after {len(raw)} of {size} bytes: the shard is truncated.")
        if self._content.field.endswith(".gz"):
            raw = self._decompressed(raw, shown)
        if self._kind == "npy":
            return self._of_array(raw, shown)
        return self._of_text(self._text_in_json(raw, shown) if self._kind == "json" else self._text(raw, shown), shown)

    def _of_text(self, text: str, shown: str) -> Decoded:
        if not text:
            raise UnusableDocument("empty", f"{shown} is empty.", is_absent=True)
        n_bytes = len(text.encode())
        if n_bytes > _LARGEST_TEXT:  # a replaced byte takes three
            raise self._too_large(shown)
        (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)
        before = [] if self._borders.bos_id is None else [self._borders.bos_id]
        tokens = np.array([*before, *encoding.ids, self._borders.eos_id], dtype=self._dtype)
        return Decoded(tokens, n_bytes)

    def _text(self, raw: bytes, shown: str) -> str:
        if len(raw) > _LARGEST_TEXT:
            raise self._too_large(shown)
        return raw.decode("utf-8", "replace")

    def _text_in_json(self, raw: bytes, shown: str) -> str:
        key = self._content.key
        try:
            # Given bytes, json would guess between five encodings, and let through surrogates that no UTF-8 has.
            record = json.loads(raw.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise UnusableDocument("not JSON", f"{shown} is not JSON: {str(error)[:200]}.") from None
        text = record.get(key) if isinstance(record, dict) else None
        if text is None:
            has = (
                f"its keys are {', '.join(map(repr, record))}"[:300] if isinstance(record, dict) else "it is no object"
            )
            raise UnusableDocument(
                f"without {key!r} in its JSON", f"{shown} has no {key!r}: {has}.", is_absent=isinstance(record, dict)
            )
        if not isinstance(text, str):
            raise UnusableDocument("not text", f"{shown} has a {type(text).__name__} in {key!r}, not text.")
        # Half of a surrogate pair is valid JSON and no valid text.
        return _SURROGATES.sub("\ufffd", text)

    def _of_array(self, raw: bytes, shown: str) -> Decoded:
        try:
            header = parse_array_header(raw[:LARGEST_HEADER])
        except (ValueError, EOFError) as error:
            raise UnusableDocument("not an array", f"{shown} is not an array of numpy: {str(error)[:200]}.") from None
        if len(header.shape) != 1 or header.dtype.kind not in "iu" or header.end != len(raw):
            raise UnusableDocument(
                "not tokens",
                f"{shown} has shape {header.shape} and type {header.dtype} in {len(raw)} bytes; ready tokens are whole "
                "numbers in one dimension.",
            )
        array = np.frombuffer(raw, header.dtype, offset=header.n_bytes)
        if not len(array):
            raise UnusableDocument("empty", f"{shown} is empty.", is_absent=True)
        lowest, highest = int(array.min()), int(array.max())
        if lowest < 0 or highest >= self._vocab_size:
            raise UnusableDocument(
                "not of this tokenizer",
                f"{shown} holds token {lowest if lowest < 0 else highest}, but those of the tokenizer are 0 to "
                f"{self._vocab_size - 1}. Give the tokenizer that made them.",
            )
        tokens = array.astype(self._dtype)
        if array[-1] != self._borders.eos_id:
            tokens = np.append(tokens, np.array([self._borders.eos_id], dtype=self._dtype))
        return Decoded(tokens, int(self._byte_lengths[tokens].sum()))

    @cached_property
    def _byte_lengths(self) -> NDArray[np.int64]:
        return token_byte_lengths(self._tokenizer).astype(np.int64)

    def _decompressed(self, raw: bytes, shown: str) -> bytes:
        largest = _LARGEST[self._kind] + LARGEST_HEADER
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(raw)) as stream:
                content = stream.read(largest + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise UnusableDocument("not gzip", f"{shown} cannot be decompressed: {error}.") from None
        if len(content) > largest:
            raise self._too_large(shown)
        return content

    def _too_large(self, shown: str) -> UnusableDocument:
        largest = _LARGEST[self._kind]
        return UnusableDocument(
            f"larger than {largest >> 20} MiB",
            f"{shown} has more than {largest >> 20} MiB when decompressed, the most that a document may have "
            f"({_LARGEST_TEXT >> 20} MiB of text). Split it.",
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # A tokenizer forgets this on its way to another process, and would take the name of a special token in a text
        # for the token.
        self._tokenizer.encode_special_tokens = True
