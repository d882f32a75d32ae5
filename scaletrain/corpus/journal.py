"""What an interrupted build has finished, so that the same command goes on where it was.

While a corpus is being built its folder holds ``.building/``: ``plan.json``, what the build was asked for and which
files its input has, and ``journal.jsonl``, a line for each shard that is finished. Of a finished corpus the first stays
as ``build.json``, so that it is known again.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from scaletrain.corpus.splits import SPLITS
from scaletrain.data.manifest import FILE_NAME, NATIVE_FIELD, ShardEntry
from scaletrain.data.shard_index import index_path
from scaletrain.errors import ConfigError, DataError
from scaletrain.files import whole_file

FOLDER = ".building"
BUILT_FILE = "build.json"
_PLAN_FILE = "plan.json"
_OWN_FILES = re.compile(rf"({'|'.join(SPLITS)})-\d{{6}}\.(tar|index\.npz)(\.tmp)?")


@dataclass(frozen=True)
class BuildIdentity:
    """What makes two builds the same.

    Attributes:
        options: By name; all that changes the result.
        files: Of the input: size in bytes and time of change in nanoseconds, by path.
    """

    options: Mapping[str, Any]
    files: Mapping[str, tuple[int, int]]


@dataclass
class Journal:
    """The record of one build.

    Attributes:
        folder: Of the corpus.
        shards: Finished shards of each split.
        until: For each split the ordinal of the document after its last finished shard.
        tokenizer: sha256 of the tokenizer, once it is there.
    """

    folder: Path
    shards: dict[str, list[ShardEntry]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    until: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    tokenizer: str | None = None

    def add_shard(self, entry: ShardEntry, split: str, until: int) -> None:
        """Notes that a shard and its index are on the disk.

        Args:
            entry: The shard.
            split: Where it belongs.
            until: Ordinal after that of its last document.
        """
        self.shards[split].append(entry)
        self.until[split] = until
        self._append({"split": split, "until": until, "shard": entry.model_dump(exclude_none=True)})

    def add_tokenizer(self, sha256: str) -> None:
        """Notes that the tokenizer is on the disk."""
        self.tokenizer = sha256
        self._append({"tokenizer": sha256})

    def keep_plan(self) -> None:
        """Keeps what the build was asked for; called before the manifest says that it is finished."""
        plan = self.folder / FOLDER / _PLAN_FILE
        if plan.exists():
            with whole_file(self.folder / BUILT_FILE) as stream:
                stream.write(plan.read_bytes())

    def close(self) -> None:
        """Removes the record: the manifest says all from here on."""
        shutil.rmtree(self.folder / FOLDER)

    @property
    def _path(self) -> Path:
        return self.folder / FOLDER / "journal.jsonl"

    def _append(self, line: dict[str, Any]) -> None:
        with self._path.open("ab") as stream:
            stream.write(json.dumps(line).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())

    def _read(self) -> None:
        content = self._path.read_bytes() if self._path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:  # the build was killed while it wrote the last line
            os.truncate(self._path, len(whole))
        for line in map(json.loads, whole.splitlines()):
            if "tokenizer" in line:
                self.tokenizer = line["tokenizer"]
                continue
            entry = ShardEntry.model_validate(line["shard"])
            path = self.folder / entry.path
            if not index_path(path).exists() or not path.exists() or path.stat().st_size != entry.size:
                raise DataError(f"{path} or its index is missing, or has another size.")
            self.shards[line["split"]].append(entry)
            self.until[line["split"]] = line["until"]

    def _remove_the_unfinished(self) -> None:
        tars = {entry.path for shards in self.shards.values() for entry in shards}
        finished = tars | {index_path(Path(tar)).name for tar in tars}
        for path in self.folder.iterdir():
            if _OWN_FILES.fullmatch(path.name) and path.name not in finished:
                path.unlink()


def holds_corpus(folder: Path) -> bool:
    """Whether a build wrote this folder, finished or not; not where a manifest lies beside tars made elsewhere."""
    if (folder / FOLDER).is_dir():
        return True
    try:
        manifest = json.loads((folder / FILE_NAME).read_bytes())
        content = manifest.get("content", {}).get("field", NATIVE_FIELD)
        return bool(content == NATIVE_FIELD and {"splits", "tokenizer", "totals"} <= manifest.keys())
    except (OSError, ValueError, AttributeError):
        return False


def open_journal(folder: Path, identity: BuildIdentity | None) -> Journal:
    """Begins a build, or goes on with one that was interrupted.

    Args:
        folder: Of the corpus; it has no manifest yet.
        identity: What is to be built; None where that cannot be compared, and every build begins anew.

    Returns:
        The journal. What an interrupted build left unfinished is removed from the folder.

    Raises:
        ConfigError: Another build was interrupted here.
        DataError: Shards lie here that no interrupted build made, or one that it finished is gone or damaged.
    """
    journal = Journal(folder)
    record = folder / FOLDER
    plan = record / _PLAN_FILE
    if not record.exists():
        strangers = sorted(path.name for path in folder.iterdir() if _OWN_FILES.fullmatch(path.name))
        if strangers:
            raise DataError(
                f"{folder} holds {strangers[0]}, which no interrupted build left there. Give another --out, or move "
                "it away."
            )
    elif identity is not None and plan.exists():
        _compare(json.loads(plan.read_bytes()), identity, f"The interrupted build in {folder}")
        try:
            journal._read()
        except (DataError, ValidationError, ValueError, KeyError) as error:
            raise DataError(
                f"The interrupted build in {folder} cannot go on: {error} Delete that folder, and build again."
            ) from None
    else:
        shutil.rmtree(record)
        record.mkdir()  # so that what is removed below stays known as ours
    record.mkdir(exist_ok=True)
    journal._remove_the_unfinished()
    if identity is not None and not plan.exists():
        with whole_file(plan) as stream:
            stream.write(json.dumps({"options": identity.options, "files": identity.files}).encode())
    return journal


def check_finished(folder: Path, identity: BuildIdentity | None) -> None:
    """Raises unless the corpus in a folder is what is to be built.

    Args:
        folder: Holds a manifest.
        identity: What is to be built; None where that cannot be compared.

    Raises:
        ConfigError: It was made with other options, or of another input.
        DataError: Nobody knows how it was made.
    """
    built = folder / BUILT_FILE
    if identity is None or not built.exists():
        raise DataError(f"{folder} holds a corpus already. Give another --out, or delete that folder first.")
    _compare(json.loads(built.read_bytes()), identity, f"The finished corpus in {folder}")


def _compare(found: dict[str, Any], wanted: BuildIdentity, subject: str) -> None:
    for name, value in json.loads(json.dumps(wanted.options)).items():
        before = found["options"].get(name)
        if before != value:
            raise ConfigError(
                f"{subject} had {name} = {_short(before)}, now it is {_short(value)}. Give the same again, or another "
                "--out."
            )
    before, now = found["files"], {name: list(facts) for name, facts in wanted.files.items()}
    changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if changed:
        name = changed[0]
        state = "is new" if name not in before else "is gone" if name not in now else "was changed"
        more = f" ({len(changed) - 1} more differ)" if len(changed) > 1 else ""
        raise ConfigError(
            f"{subject} had another input: {name} {state}{more}. Restore the input, or give another --out."
        )


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
