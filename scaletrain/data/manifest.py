"""The manifest of a corpus: its shards with sizes and checksums, its tokenizer, and where it came from."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from scaletrain.data.atomic import whole_file
from scaletrain.errors import DataError

VERSION: Literal[1] = 1
FILE_NAME = "manifest.json"


def _inside_folder(path: str) -> str:
    """A manifest may come from a stranger: it names files of its own folder, and no URL that runs a command."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or ":" in path:
        raise ValueError("must be a path inside the manifest's folder")
    return path


InnerPath = Annotated[str, AfterValidator(_inside_folder)]


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


class Totals(_Record):
    """Documents, tokens (with those that mark borders) and bytes of text in UTF-8."""

    documents: int = Field(ge=0)
    tokens: int = Field(ge=0)
    bytes: int = Field(ge=0)


class ShardEntry(Totals):
    """One tar: its path in the manifest's folder, its size in bytes, the xxh3-128 of its content, and what it holds."""

    path: InnerPath
    size: int = Field(ge=1)
    checksum: str


class Manifest(_Record):
    """All that is known of a corpus before a shard is opened.

    Attributes:
        folder: Where the manifest lies; not part of the file.
        version: Of the format.
        source: Where the text came from, for people.
        dtype: Type of the stored tokens.
        tokenizer: What the text was made into tokens with.
        splits: Shards of ``train`` and ``validation``, in the order that the data's order counts them in.
        totals: Sums for each split.
    """

    folder: Path = Field(exclude=True)
    version: Literal[1] = VERSION
    source: str
    dtype: Literal["uint16", "uint32"]
    tokenizer: TokenizerEntry
    splits: Mapping[str, tuple[ShardEntry, ...]]
    totals: Mapping[str, Totals]

    @classmethod
    def open(cls, path: Path) -> "Manifest":
        """Reads a manifest and checks that its files are there and are the right ones.

        Args:
            path: The manifest, or the folder that holds a ``manifest.json``.

        Returns:
            The manifest. The shards' content is not read; their sizes and the tokenizer's hash are checked.

        Raises:
            DataError: The manifest cannot be read, or a file is missing, has another size or another hash.
        """
        path = path / FILE_NAME if path.is_dir() else path
        fields = _read_json(path)
        if fields.get("version") != VERSION:
            raise DataError(
                f"{path} has version {fields.get('version')!r}, this program reads version {VERSION}. "
                "Build the corpus again with tools/make_shards.py."
            )
        try:
            manifest = cls(**{**fields, "folder": path.parent})
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise DataError(
                f"{path}: {place or 'the manifest'} is not valid: {first['msg']}. "
                "Build the corpus again with tools/make_shards.py."
            ) from None
        manifest._check_totals(path)
        manifest._check_tokenizer()
        manifest._check_sizes()
        return manifest

    def write(self) -> Path:
        """Writes ``manifest.json`` into the folder, whole or not at all.

        Returns:
            The file's path.
        """
        path = self.folder / FILE_NAME
        with whole_file(path) as stream:
            stream.write(self.model_dump_json(indent=1).encode() + b"\n")
        return path

    def split(self, name: str) -> tuple[ShardEntry, ...]:
        """The shards of a split.

        Args:
            name: ``train`` or ``validation``.

        Returns:
            At least one shard.

        Raises:
            DataError: There is no such split, or it is empty.
        """
        shards = self.splits.get(name, ())
        if not shards:
            raise DataError(
                f"{self.folder / FILE_NAME} has no shard in split {name!r}. Build the corpus again with "
                "tools/make_shards.py, with more text or another --validation_share."
            )
        return shards

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer's file."""
        return self.folder / self.tokenizer.file

    @property
    def token_dtype(self) -> np.dtype[np.unsignedinteger]:
        """Type of the stored tokens, little-endian."""
        return np.dtype("<u2" if self.dtype == "uint16" else "<u4")

    @property
    def fingerprint(self) -> str:
        """Hash of what determines the data: tokenizer and shards, but not paths; equal for equal corpora."""
        content = {
            "tokenizer": self.tokenizer.sha256,
            "splits": {name: [shard.checksum for shard in shards] for name, shards in sorted(self.splits.items())},
        }
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def _check_totals(self, path: Path) -> None:
        sums = {name: totals_of(shards) for name, shards in self.splits.items()}
        for name in sorted(set(sums) | set(self.totals)):
            if sums.get(name) != self.totals.get(name):
                raise DataError(
                    f"{path}: the totals of split {name!r} are ({self.totals.get(name)}), but its shards sum to "
                    f"({sums.get(name)}). The file was changed; build the corpus again with tools/make_shards.py."
                )

    def _check_tokenizer(self) -> None:
        path = self.tokenizer_path
        try:
            found = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise DataError(f"The tokenizer {path} cannot be read: {error.strerror}. Restore it.") from None
        if found != self.tokenizer.sha256:
            raise DataError(
                f"{path} is not the tokenizer that this corpus was made with: its sha256 is {found}, the manifest "
                f"says {self.tokenizer.sha256}. Restore the file, or build the corpus again with tools/make_shards.py."
            )

    def _check_sizes(self) -> None:
        for shards in self.splits.values():
            for shard in shards:
                check_size(self.folder / shard.path, shard.size, "the manifest")


def totals_of(shards: tuple[ShardEntry, ...]) -> Totals:
    """Sums over shards."""
    return Totals(
        documents=sum(shard.documents for shard in shards),
        tokens=sum(shard.tokens for shard in shards),
        bytes=sum(shard.bytes for shard in shards),
    )


def check_size(path: Path, expected: int, authority: str) -> None:
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
        found = path.stat().st_size
    except OSError as error:
        raise DataError(f"Shard {path} cannot be read: {error.strerror}. {remedy}") from None
    if found != expected:
        state = "is truncated" if found < expected else "is not the one indexed"
        raise DataError(f"Shard {path} {state}: it has {found} bytes, {authority} says {expected}. {remedy}")


def _read_json(path: Path) -> dict[str, object]:
    try:
        fields = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"The manifest {path} cannot be read: {error.strerror}. Check --data.manifest, or make a corpus with "
            "tools/make_shards.py build --input TEXTS --out FOLDER --train_tokenizer 8192."
        ) from None
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}. Is it a manifest.json made by tools/make_shards.py?") from None
    if not isinstance(fields, dict):
        raise DataError(f"{path} holds a {type(fields).__name__}, not a manifest. Check --data.manifest.")
    return fields
