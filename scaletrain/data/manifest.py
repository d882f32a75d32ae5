"""The manifest of a corpus: its shards with sizes and checksums, its tokenizer, and where it came from."""

import contextlib
import gc
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from scaletrain.data.manifest_paths import InnerPath, ShardPath
from scaletrain.errors import DataError
from scaletrain.files import whole_file
from scaletrain.storage.storage import Storage
from scaletrain.storage.urls import is_remote, join, printable

VERSION: Literal[1] = 1
FILE_NAME = "manifest.json"
NATIVE_FIELD = "tokens.npy"
LABEL = "label"
"""Name of the value that is the number of a document's class."""
_LARGEST_MANIFEST = 1 << 30
_LARGEST_TOKENIZER = 1 << 28
_LARGEST_INDEX = 1 << 30
_LARGEST_SUM = 1 << 62  # int64 holds twice as much


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TokenizerEntry(_Record):
    """The tokenizer that the corpus was made with.

    Attributes:
        file: Path of its ``tokenizer.json`` in the manifest's folder.
        sha256: Of that file, as hexadecimal digits.
        vocab_size: Largest id plus one: the rows that an embedding needs.
        eos_id: The token at the end of each document.
        bos_id: The token at the start of each document, where there is one.
    """

    file: InnerPath
    sha256: str
    vocab_size: int = Field(ge=2)
    eos_id: int = Field(ge=0)
    bos_id: int | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _check_borders(self) -> "TokenizerEntry":
        if max(self.eos_id, self.bos_id or 0) >= self.vocab_size:
            raise ValueError(
                f"eos_id {self.eos_id} and bos_id {self.bos_id} must be below vocab_size {self.vocab_size}"
            )
        return self


class Totals(_Record):
    """Documents, tokens (with those that mark borders) and bytes of text in UTF-8."""

    documents: int = Field(ge=0, lt=_LARGEST_SUM)
    tokens: int = Field(ge=0, lt=_LARGEST_SUM)
    bytes: int = Field(ge=0, lt=_LARGEST_SUM)


class ShardEntry(Totals):
    """One tar, and what it holds.

    Attributes:
        path: In the manifest's folder; or absolute, or a URL, for a shard that was made elsewhere.
        size: In bytes.
        checksum: xxh3-128 of the content, as hexadecimal digits.
        index: Path of the index in the manifest's folder; beside the shard where it is None.
        index_size: Of the index file, in bytes.
        index_checksum: xxh3-128 of the index file.
        longest: Most tokens of a document, where that is known.
        packed: For each ``max_seq_len`` counted so far, the sequences that best-fit packing makes of the shard.
    """

    path: ShardPath
    size: int = Field(ge=1, lt=_LARGEST_SUM)
    checksum: str
    index: InnerPath | None = None
    index_size: int | None = Field(None, ge=1, le=_LARGEST_INDEX)
    index_checksum: str | None = None
    longest: int | None = Field(None, ge=0, lt=_LARGEST_SUM)
    # Not {}: pydantic would copy it deeply for each of a hundred thousand shards.
    packed: Mapping[int, Annotated[int, Field(ge=0)]] = Field(default_factory=dict)


class Content(_Record):
    """What a sample of a shard holds: the field, and the key of a JSON object where the text is in one.

    ``tokens.npy`` are tokens with their borders, as the build writes them. Other fields are those of shards made
    elsewhere: ``txt``, ``json``, ``npy``, each also with ``.gz``.
    """

    field: str = NATIVE_FIELD
    key: str | None = None


class Manifest(_Record):
    """All that is known of a corpus before a shard is opened.

    Attributes:
        location: Path or URL of the manifest itself; not part of the file.
        version: Of the format.
        source: Where the text came from, for people.
        dtype: Type of the stored tokens.
        tokenizer: What the text was made into tokens with.
        content: What the shards hold.
        parts: Whether the highest bit of each stored word is the token's part, 0 or 1, and the rest the token.
        values: Names of the numbers that each document has, in their order.
        classes: Names of the classes that documents belong to. Each belongs to one where ``values`` is ``label``, the
            number of its class here; to any of them where ``values`` are the classes, each 1 or 0.
        chat_template: What conversations were rendered with: a template in Jinja, see ``chat.py``.
        splits: Shards of ``train``, ``validation`` and perhaps ``test``, in the order that the data's order counts
            them in.
        totals: Sums for each split.
    """

    location: str = Field(exclude=True)
    version: Literal[1] = VERSION
    source: str
    dtype: Literal["uint16", "uint32"]
    tokenizer: TokenizerEntry
    content: Content = Content()
    parts: bool = False
    values: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    chat_template: str | None = None
    splits: Mapping[str, tuple[ShardEntry, ...]]
    totals: Mapping[str, Totals]

    @model_validator(mode="after")
    def _check_dtype(self) -> "Manifest":
        largest = largest_vocabulary(self.dtype, self.parts)
        if self.tokenizer.vocab_size > largest:
            with_parts = " with parts" if self.parts else ""
            raise ValueError(
                f"vocab_size {self.tokenizer.vocab_size} must be at most {largest}, as dtype is "
                f"{self.dtype}{with_parts}"
            )
        return self

    @model_validator(mode="after")
    def _check_values(self) -> "Manifest":
        if len(set(self.values)) < len(self.values) or len(set(self.classes)) < len(self.classes):
            raise ValueError("each of values and classes must have a name of its own")
        if self.classes and (len(self.classes) < 2 or self.values not in ((LABEL,), self.classes)):
            raise ValueError(f"classes must be two or more, and values be {LABEL!r} or the classes")
        if (self.parts or self.values) and self.content != Content():
            raise ValueError(f"only documents of {NATIVE_FIELD} can have parts or values")
        return self

    @classmethod
    def open(cls, location: str | Path, storage: Storage | None = None, shards_may_lack: bool = False) -> "Manifest":
        """Reads a manifest and checks that its files are there and are the right ones.

        Args:
            location: The manifest, or the folder that holds a ``manifest.json``; a path or a URL.
            storage: Reads what is not a local file.
            shards_may_lack: Whether local shards may be missing or have another size.

        Returns:
            The manifest. The shards' content is not read. The tokenizer's hash is checked, and the size of local
            shards.

        Raises:
            DataError: The manifest cannot be read, or a file is missing, has another size or another hash.
        """
        storage = storage or Storage()
        place = str(location)
        if not is_remote(place):
            place = str(Path(place) / FILE_NAME if Path(place).is_dir() else Path(place))
        elif "?" in place or "#" in place:
            # What lies beside it would have no such URL.
            raise DataError(f"The URL of the manifest {printable(place)} has a query or a fragment. Give it without.")
        elif not place.endswith(".json"):
            place = place.rstrip("/") + "/" + FILE_NAME
        shown = printable(place)
        with _without_garbage_collection():
            manifest = cls._parse(place, shown, _read_json(place, shown, storage))
        manifest._check_totals(shown)
        manifest.read_tokenizer(storage)
        for shards in () if shards_may_lack else manifest.splits.values():
            for shard in shards:
                path = shard.path if is_remote(shard.path) else manifest.locate(shard.path)
                if not is_remote(path):
                    check_size(path, shard.size, "the manifest")
        return manifest

    @classmethod
    def _parse(cls, place: str, shown: str, fields: dict[str, object]) -> "Manifest":
        if fields.get("version") != VERSION:
            raise DataError(
                f"{shown} has version {fields.get('version')!r}, this program reads version {VERSION}. "
                "Build the corpus again with tools/make_shards.py."
            )
        try:
            return cls(**{**fields, "location": place})
        except ValidationError as error:
            first = error.errors()[0]
            part = ".".join(str(part) for part in first["loc"])
            raise DataError(
                f"{shown}: {part or 'the manifest'} is not valid: {first['msg']}. "
                "Build the corpus again with tools/make_shards.py."
            ) from None

    def write(self) -> Path:
        """Writes the manifest to its location, a local path, whole or not at all.

        Returns:
            The file's path.
        """
        path = Path(self.location)
        with whole_file(path) as stream:
            stream.write(self.model_dump_json(indent=1, exclude_none=True).encode() + b"\n")
        return path

    def split(self, name: str) -> tuple[ShardEntry, ...]:
        """The shards of a split.

        Args:
            name: ``train``, ``validation`` or ``test``.

        Returns:
            At least one shard.

        Raises:
            DataError: There is no such split, or it is empty.
        """
        shards = self.splits.get(name, ())
        if not shards:
            raise DataError(
                f"{self.shown} has no shard in split {name!r}. Build the corpus again with "
                "tools/make_shards.py, with more text or another --validation_share."
            )
        return shards

    def locate(self, path: str) -> str:
        """Where something lies that the manifest names: a local path or a URL."""
        return join(os.path.dirname(self.location) or ".", path)

    @property
    def shown(self) -> str:
        """The manifest's own path or URL, as it may be shown."""
        return printable(self.location)

    @property
    def token_dtype(self) -> np.dtype[np.unsignedinteger]:
        """Type of the stored tokens, little-endian."""
        return np.dtype("<u2" if self.dtype == "uint16" else "<u4")

    @property
    def longest(self) -> int | None:
        """Most tokens of a document, with those that mark borders; None where a shard does not tell."""
        longest = 0
        for shards in self.splits.values():
            for shard in shards:
                if shard.longest is None:
                    return None
                longest = max(longest, shard.longest)
        return longest

    @property
    def fingerprint(self) -> str:
        """Hash of what determines the data: tokenizer and shards, but not paths; equal for equal corpora."""
        content: dict[str, object] = {
            "tokenizer": self.tokenizer.sha256,
            "splits": {name: [shard.checksum for shard in shards] for name, shards in sorted(self.splits.items())},
        }
        if self.content != Content():
            content["content"] = self.content.model_dump()
        if self.parts or self.values:
            content["examples"] = [self.parts, self.values, self.classes]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def read_tokenizer(self, storage: Storage | None = None) -> bytes:
        """The content of the corpus's ``tokenizer.json``.

        Args:
            storage: Reads what is not a local file.

        Returns:
            The file, whose hash is the manifest's.

        Raises:
            DataError: It cannot be read, or is another tokenizer.
        """
        place = self.locate(self.tokenizer.file)
        content = (storage or Storage()).read(place, _LARGEST_TOKENIZER, "The tokenizer")
        found = hashlib.sha256(content).hexdigest()
        if found != self.tokenizer.sha256:
            raise DataError(
                f"{printable(place)} is not the tokenizer that this corpus was made with: its sha256 is {found}, the "
                f"manifest says {self.tokenizer.sha256}. Restore the file, or build the corpus again with "
                "tools/make_shards.py."
            )
        return content

    def _check_totals(self, shown: str) -> None:
        sums = {name: totals_of(shards) for name, shards in self.splits.items()}
        for name in sorted(set(sums) | set(self.totals)):
            if sums.get(name) != self.totals.get(name):
                raise DataError(
                    f"{shown}: the totals of split {name!r} are ({self.totals.get(name)}), but its shards sum to "
                    f"({sums.get(name)}). The file was changed; build the corpus again with tools/make_shards.py."
                )


def largest_vocabulary(dtype: str, parts: bool) -> int:
    """The most tokens that words of a type can tell apart.

    Args:
        dtype: ``uint16`` or ``uint32``.
        parts: Whether the highest bit of each word is the token's part.

    Returns:
        The number of them, the largest token plus one.
    """
    return (int(np.iinfo(dtype).max) + 1) >> int(parts)


def totals_of(shards: tuple[ShardEntry, ...]) -> Totals:
    """Sums over shards."""
    # Not validated: a manifest's are compared with the totals that it names, which are.
    return Totals.model_construct(
        documents=sum(shard.documents for shard in shards),
        tokens=sum(shard.tokens for shard in shards),
        bytes=sum(shard.bytes for shard in shards),
    )


def check_size(path: str | Path, expected: int, authority: str) -> None:
    """Checks that a shard is there and has its size.

    Args:
        path: The shard.
        expected: Its size in bytes.
        authority: Who says so, for the message.

    Raises:
        DataError: It is missing, or has another size.
    """
    remedy = "Copy it again from where it came, or build the corpus again with tools/make_shards.py."
    try:
        found = os.stat(path).st_size
    except OSError as error:
        raise DataError(f"Shard {path} cannot be read: {error.strerror}. {remedy}") from None
    if found != expected:
        state = "is truncated" if found < expected else "is not the one indexed"
        raise DataError(f"Shard {path} {state}: it has {found} bytes, {authority} says {expected}. {remedy}")


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """A hundred thousand shards make a million objects, none of them garbage: to look for some doubles the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _read_json(place: str, shown: str, storage: Storage) -> dict[str, object]:
    try:
        fields = json.loads(storage.read(place, _LARGEST_MANIFEST, "The manifest"))
    except DataError as error:
        raise DataError(
            f"{error} Check --data.manifest, or make a corpus with tools/make_shards.py build --input TEXTS --out "
            "FOLDER --train_tokenizer 8192."
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{shown} is not JSON: {error}. Is it a manifest.json made by tools/make_shards.py?") from None
    if not isinstance(fields, dict):
        raise DataError(f"{shown} holds a {type(fields).__name__}, not a manifest. Check --data.manifest.")
    return fields
