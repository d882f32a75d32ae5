"""Makes a corpus of shards that somebody else wrote, where they lie: an index of each, and a manifest over them."""

import hashlib
import json
import logging
import os
import stat
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, BinaryIO, Literal

import filelock
import numpy as np
import xxhash

from scaletrain.corpus.foreign_shard import Indexed, OnBadDocument, index_foreign, index_native
from scaletrain.corpus.index_journal import IndexJournal, Record
from scaletrain.corpus.processes import run_in_order
from scaletrain.corpus.shard_list import list_shards, split_patterns
from scaletrain.data.foreign import DocumentDecoder
from scaletrain.data.manifest import (
    NATIVE_FIELD,
    Content,
    Manifest,
    ShardEntry,
    TokenizerEntry,
    totals_of,
)
from scaletrain.data.manifest_paths import is_fit_for_manifest
from scaletrain.data.tokenizer import Borders, find_borders, load_tokenizer, token_byte_lengths, vocabulary_rows
from scaletrain.errors import ConfigError, DataError
from scaletrain.files import whole_file
from scaletrain.storage.fetch import FetchPolicy
from scaletrain.storage.survey import Surveyor
from scaletrain.storage.urls import is_remote, printable

logger = logging.getLogger(__name__)

_TOKENIZER_FILE = "tokenizer.json"
_LOG_EVERY_S = 10.0
_ASKING = 8  # threads that ask whether remote shards have changed


@dataclass(frozen=True)
class IndexPlan:
    """All that an index depends on besides its shard.

    Attributes:
        content: What a document is.
        tokenizer: Path of a ``tokenizer.json``.
        sha256: Of that file.
        borders: Tokens that mark where a document begins and ends.
        dtype: Of the tokens.
        vocab_size: Tokens are below it.
        on_bad_document: Whether one that cannot be decoded ends the work, or is left out and counted.
        policy: How hard to try to fetch a remote shard.
    """

    content: Content
    tokenizer: Path
    sha256: str
    borders: Borders
    dtype: Literal["uint16", "uint32"]
    vocab_size: int
    on_bad_document: OnBadDocument
    policy: FetchPolicy

    @property
    def identity(self) -> dict[str, Any]:
        """What must be equal for an index of an interrupted command to be kept."""
        return {
            "field": self.content.field,
            "key": self.content.key,
            "tokenizer": self.sha256,
            **asdict(self.borders),
            "on_bad_document": self.on_bad_document,
        }


@dataclass(frozen=True)
class _Job:
    location: str
    index: Path


def index_corpus(
    shards: str,
    content: Content,
    tokenizer: Path,
    out: Path,
    validation: str | int = 0,
    eos_token: str | None = None,
    num_workers: int = 0,
    on_bad_document: OnBadDocument = "fail",
    policy: FetchPolicy | None = None,
) -> Path:
    """Indexes shards where they lie, and writes a manifest that training can be given.

    The number of tokens of each document is counted once, with what training reads it with later.

    Args:
        shards: Patterns of paths and URLs, as ``list_shards`` takes them.
        content: What a document is, see ``content_of``.
        tokenizer: A ``tokenizer.json``; of ready tokens the one that made them.
        out: The manifest to write. Beside it go a copy of the tokenizer and the folder ``index``.
        validation: Patterns of the shards that are held out, or how many of the last ones.
        eos_token: Name of the token that ends a document, where it is not one of the usual names.
        num_workers: Processes, each for one shard at a time; with 0 the work is done here.
        on_bad_document: Whether a document that cannot be decoded ends the work, or is left out and counted.
        policy: How hard to try to fetch a remote shard, which is done whole, one a process at a time.

    Returns:
        Path of the manifest.

    Raises:
        DataError: There is a manifest already, or a shard, a document or the tokenizer cannot be used.
        ConfigError: The shards held out leave none, or the command that was interrupted here had other options.
    """
    policy = policy or FetchPolicy()
    surveyor = Surveyor(policy, _log_retry)
    train, held_out = _split(list_shards(shards, surveyor), validation, surveyor)
    out = Path(os.path.abspath(out))
    if out.suffix != ".json" or not is_fit_for_manifest(str(out)):
        raise ConfigError(
            f"--out is {str(out)!r}, but must be the manifest to write, such as corpus/manifest.json, in UTF-8."
        )
    folder = out.parent / "index"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / ".lock", blocking=False):
            if out.exists():
                raise DataError(f"{out} exists already. Give another --out, or delete it to index what is new.")
            plan = _plan(content, tokenizer, out.parent, eos_token, on_bad_document, policy)
            records = _index_all([*train, *held_out], folder, plan, num_workers)
            return _write_manifest(out, plan, shards, {"train": train, "validation": held_out}, records)
    except filelock.Timeout:
        raise DataError(f"Another process is indexing into {folder}. Wait for it, or give another --out.") from None
    except OSError as error:
        raise DataError(f"The manifest {out} or its index cannot be written: {error.strerror}.") from None


def _split(shards: list[str], validation: str | int, surveyor: Surveyor) -> tuple[list[str], list[str]]:
    if isinstance(validation, int):
        cut = len(shards) - validation
        train, held_out = shards[: max(0, cut)], shards[max(0, cut) :]
    else:
        held_out = list_shards(validation, surveyor) if validation else []
        train = [shard for shard in shards if shard not in set(held_out)]
    if not train:
        raise ConfigError(f"All {len(shards)} shards are held out for validation, and none is left to train on.")
    return train, held_out


def _plan(
    content: Content,
    path: Path,
    folder: Path,
    eos_token: str | None,
    on_bad_document: OnBadDocument,
    policy: FetchPolicy,
) -> IndexPlan:
    tokenizer = load_tokenizer(path)
    token_byte_lengths(tokenizer)  # refuses here what training refuses
    rows = vocabulary_rows(tokenizer)
    content_of_file = path.read_bytes()
    copy = folder / _TOKENIZER_FILE
    if not copy.exists():
        with whole_file(copy) as stream:
            stream.write(content_of_file)
    elif copy.read_bytes() != content_of_file:
        raise DataError(f"{copy} is another tokenizer than {path}. Give an --out in another folder.")
    plan = IndexPlan(
        content=content,
        tokenizer=copy,
        sha256=hashlib.sha256(content_of_file).hexdigest(),
        borders=find_borders(tokenizer, eos_token),
        dtype="uint16" if rows <= 2**16 else "uint32",
        vocab_size=rows,
        on_bad_document=on_bad_document,
        policy=policy,
    )
    if content.field != NATIVE_FIELD:
        _decoder(plan)  # which refuses what cannot be decoded by it
    return plan


def _index_all(shards: Sequence[str], folder: Path, plan: IndexPlan, num_workers: int) -> dict[str, Record]:
    """Indexes what an interrupted command has not, and returns the records of all shards by their location."""
    journal = IndexJournal.open(folder, plan.identity)
    surveyor = Surveyor(plan.policy, _log_retry)
    with ThreadPoolExecutor(_ASKING) as threads:
        found = threads.map(lambda shard: journal.find(shard, surveyor), shards)
        records = {shard: record for shard, record in zip(shards, found, strict=True) if record is not None}
    if records:
        logger.info("%d of %d shards are indexed already", len(records), len(shards))
    names = journal.name(shards)
    jobs = [_Job(shard, folder / names[shard]) for shard in shards if shard not in records]
    start = shown = time.monotonic()
    for done, (job, record) in enumerate(run_in_order(partial(_index, plan), jobs, num_workers), start=1):
        records[job.location] = record
        journal.add(record)
        now = time.monotonic()
        if now - shown >= _LOG_EVERY_S:
            shown = now
            left_s = (now - start) / done * (len(jobs) - done)
            logger.info("indexed %d of %d shards, about %.0f s left", done, len(jobs), left_s)
    skipped: Counter[str] = Counter()
    for record in records.values():
        skipped.update(record.skipped)
    for reason, count in sorted(skipped.items()):
        logger.warning("left out: %s %s", f"{count:,}", reason)
    return records


def _index(plan: IndexPlan, job: _Job) -> Record:
    """Indexes one shard, in whatever process, and writes its index."""
    shown = printable(job.location)
    try:
        with _opened(job, plan.policy) as stream:
            changed_ns = None if is_remote(job.location) else os.fstat(stream.fileno()).st_mtime_ns
            indexed = _index_stream(stream, shown, plan)
    except OSError as error:
        raise DataError(f"Shard {shown} cannot be read: {error.strerror}.") from None
    indexed.index.write(job.index)
    written = job.index.read_bytes()
    index = indexed.index
    return Record(
        location=job.location,
        changed_ns=changed_ns,
        entry=ShardEntry(
            path=job.index.name,  # where it lies is for the manifest to say
            size=index.size,
            checksum=index.checksum,
            index=job.index.name,
            index_size=len(written),
            index_checksum=xxhash.xxh3_128_hexdigest(written),
            longest=int(index.n_tokens.max()),
            documents=len(index.offsets),
            tokens=int(index.n_tokens.sum()),
            bytes=sum(index.n_bytes.tolist()),  # which may exceed what int64 holds
        ),
        skipped=dict(indexed.skipped),
    )


@contextmanager
def _opened(job: _Job, policy: FetchPolicy) -> Iterator[BinaryIO]:
    if not is_remote(job.location):
        # Without waiting for whoever may write into a FIFO.
        with open(job.location, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise DataError(
                    f"Shard {job.location} is no regular file, but a FIFO, a device or the like. Name a tar."
                )
            yield stream
        return
    # Without a name, so that it is gone with this process, however that ends.
    with tempfile.TemporaryFile(dir=job.index.parent) as stream:
        Surveyor(policy, _log_retry).download(job.location, stream)
        yield stream


def _index_stream(stream: BinaryIO, shown: str, plan: IndexPlan) -> Indexed:
    if plan.content.field == NATIVE_FIELD:
        return index_native(stream, shown, plan.dtype, plan.vocab_size, plan.borders)
    return index_foreign(stream, shown, plan.content, _decoder(plan), plan.dtype, plan.on_bad_document)


@lru_cache(maxsize=1)
def _decoder(plan: IndexPlan) -> DocumentDecoder:
    """Made once in each process."""
    tokenizer = load_tokenizer(plan.tokenizer)
    return DocumentDecoder(plan.content, tokenizer, plan.borders, np.dtype(plan.dtype), plan.vocab_size)


def _write_manifest(
    out: Path, plan: IndexPlan, source: str, splits: dict[str, list[str]], records: dict[str, Record]
) -> Path:
    entries = {
        split: tuple(
            records[shard].entry.model_copy(
                update={"path": _path_in_manifest(shard, out.parent), "index": f"index/{records[shard].entry.index}"}
            )
            for shard in shards
        )
        for split, shards in splits.items()
    }
    manifest = Manifest(
        location=str(out),
        source=",".join(printable(part) for part in split_patterns(source)),
        dtype=plan.dtype,
        tokenizer=TokenizerEntry(
            file=_TOKENIZER_FILE,
            sha256=plan.sha256,
            vocab_size=plan.vocab_size,
            eos_id=plan.borders.eos_id,
            bos_id=plan.borders.bos_id,
        ),
        content=plan.content,
        splits=entries,
        totals={name: totals_of(shards) for name, shards in entries.items()},
    )
    checksums = [entry.checksum for shards in entries.values() for entry in shards]
    if copies := len(checksums) - len(set(checksums)):
        logger.warning("%d shards have the same content as another: their documents count twice", copies)
    return manifest.write()


def _path_in_manifest(location: str, folder: Path) -> str:
    """Relative for what lies below the manifest, so that the folder can be moved."""
    if is_remote(location) or not Path(location).is_relative_to(folder):
        return location
    relative = Path(location).relative_to(folder).as_posix()
    return location if ":" in relative else relative


def _log_retry(kind: str, **fields: Any) -> None:
    logger.warning("%s %s", kind, json.dumps(fields))
