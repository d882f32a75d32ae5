"""Which shards an interrupted ``index`` has done: a line for each, beside their indexes."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import xxhash
from pydantic import BaseModel, ConfigDict, ValidationError

from scaletrain.data.manifest import ShardEntry
from scaletrain.errors import ConfigError, DataError
from scaletrain.storage.survey import Surveyor
from scaletrain.storage.urls import is_remote, printable

_FILE = "journal.jsonl"
_SUFFIX = ".index.npz"
_LONGEST_STEM = 100  # bytes; with a hash and suffixes a name has to stay below 255


class Record(BaseModel):
    """A shard that is indexed.

    Attributes:
        location: Absolute path or URL of the shard.
        changed_ns: When a local one was last changed.
        entry: What the manifest says of it; ``index`` is the name of its index in the folder.
        skipped: What was left out of it: how often, by reason.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    location: str
    changed_ns: int | None
    entry: ShardEntry
    skipped: Mapping[str, int]


@dataclass
class IndexJournal:
    """The records of a folder of indexes."""

    folder: Path
    records: dict[str, Record]

    @classmethod
    def open(cls, folder: Path, identity: Mapping[str, Any]) -> "IndexJournal":
        """Reads the journal of a folder, or begins it.

        Args:
            folder: Of the indexes.
            identity: What the indexes depend on besides the shards.

        Returns:
            The journal. A line that was cut while it was written is cut off.

        Raises:
            ConfigError: The indexes in the folder were made with other options.
            DataError: The journal is damaged.
        """
        path = folder / _FILE
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if not whole:
            path.write_bytes(b"")
            journal = cls(folder, {})
            journal._append(json.dumps(identity))
            return journal
        if whole != content:
            os.truncate(path, len(whole))
        lines = whole.splitlines()
        try:
            before = json.loads(lines[0])
            records = [Record.model_validate_json(line) for line in lines[1:]]
        except (ValueError, ValidationError) as error:
            raise DataError(f"{path} is damaged: {error}. Delete the folder {folder}, and index again.") from None
        for name, value in identity.items():
            if before.get(name) != value:
                raise ConfigError(
                    f"The indexes in {folder} were made with {name} = {before.get(name)!r}, now it is {value!r}. Give "
                    "an --out in another folder, or delete that one."
                )
        return cls(folder, {record.location: record for record in records})

    def find(self, location: str, surveyor: Surveyor) -> Record | None:
        """The record of a shard whose index is there, and which as far as can be told was not changed since.

        Args:
            location: Absolute path or URL of the shard.
            surveyor: Asks for the size of a remote one.

        Returns:
            The record, if the index is whole, and the shard has the size that it had; a local one also its time of
            change. Of the output of a command nothing is known beforehand: it is taken as it was.

        Raises:
            DataError: The remote shard is missing, or cannot be asked for.
        """
        record = self.records.get(location)
        if record is None or record.entry.index is None:
            return None
        try:
            content = (self.folder / record.entry.index).read_bytes()
            if xxhash.xxh3_128_hexdigest(content) != record.entry.index_checksum:
                return None
            if is_remote(location):
                if surveyor.size(location) not in (None, record.entry.size):
                    return None
            else:
                found = os.stat(location)
                if (found.st_size, found.st_mtime_ns) != (record.entry.size, record.changed_ns):
                    return None
        except OSError:
            return None
        return record

    def add(self, record: Record) -> None:
        """Notes that a shard's index is on the disk."""
        self.records[record.location] = record
        self._append(record.model_dump_json())

    def name(self, locations: Iterable[str]) -> dict[str, str]:
        """Names of the shards' indexes: as of the shard, and with a hash of its place where two are called the same.

        Args:
            locations: Of the shards; those with a record keep the name that they have.

        Returns:
            The names by location, each once.
        """
        names = {location: record.entry.index for location, record in self.records.items() if record.entry.index}
        taken = set(names.values())
        for location in locations:
            if location not in names:
                # What a URL hides from logs does not become a file's name either.
                stem = PurePosixPath(printable(location).removesuffix(" ...")).name.removesuffix(".tar")
                stem = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in stem)
                stem = stem.encode()[:_LONGEST_STEM].decode(errors="ignore") or "shard"
                name = f"{stem}{_SUFFIX}"
                if name in taken:
                    name = f"{stem}-{xxhash.xxh3_64_hexdigest(location.encode())}{_SUFFIX}"
                names[location] = name
                taken.add(name)
        return names

    def _append(self, line: str) -> None:
        with (self.folder / _FILE).open("ab") as stream:
            stream.write(line.encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
