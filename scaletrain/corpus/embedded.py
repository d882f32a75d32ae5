"""The corpus that every machine has: the source code of Python's standard library."""

import logging
import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import filelock
import xxhash

from scaletrain.corpus.build import build_corpus
from scaletrain.corpus.documents import Document
from scaletrain.data.manifest import FILE_NAME
from scaletrain.errors import DataError

logger = logging.getLogger(__name__)

# Small enough that the eight million characters make a dozen shards, so that several lanes and ranks have a share.
_SHARD_TOKENS = 1 << 18

# Installed packages are not the same on two machines; caches hold no source.
_FOREIGN = frozenset({"site-packages", "dist-packages", "__pycache__"})

# Tests are left out: they are twice as much text as the library, and of another kind: long runs of near copies and
# literal data, after which a small model completes "def " with "test_" and little else.
_TESTS = frozenset({"test", "tests", "idle_test", "idlelib_test", "_test"})

# Generated tables: byte after byte of code pages, one string of all help texts with escaped line ends, name=value
# lists of the machine that Python was built on. They are a tenth of the bytes, cost much to learn and teach nothing.
_TABLES = (
    "encodings/cp*.py",
    "encodings/iso8859_*.py",
    "encodings/mac_*.py",
    "encodings/koi8_*.py",
    "encodings/tis_620.py",
    "encodings/hp_roman8.py",
    "encodings/kz1048.py",
    "encodings/ptcp154.py",
    "encodings/palmos.py",
    "encodings/aliases.py",
    "html/entities.py",
    "pydoc_data/topics.py",
    "stringprep.py",
    "re/_casefix.py",
    "_sysconfigdata_*.py",
    "*/_sysconfigdata_*.py",
)


def prepare_python_stdlib(corpus_dir: Path, vocab_size: int) -> Path:
    """Makes the corpus of the standard library on the first call, and finds it on the next.

    Any number of processes may call it at once: one builds, the others wait.

    Args:
        corpus_dir: The folder in which its folder ``python_stdlib-<vocab_size>`` is made.
        vocab_size: Of the byte-level BPE that is trained on it.

    Returns:
        Path of its manifest.

    Raises:
        DataError: This Python has no source files, or the folder cannot be written.
        ConfigError: The vocabulary is too small.
    """
    out = corpus_dir / f"python_stdlib-{vocab_size}"
    manifest = out / FILE_NAME
    if manifest.exists():
        return manifest
    try:
        corpus_dir.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(corpus_dir / f"{out.name}.lock"):
            if manifest.exists():
                return manifest
            library = Path(sysconfig.get_path("stdlib"))
            logger.info("preparing the corpus of %s in %s, once", library, out)
            source = f"the standard library of Python {platform.python_version()}"
            return build_corpus(lambda: _documents(library), out, vocab_size, source, shard_tokens=_SHARD_TOKENS)
    except OSError as error:
        raise DataError(
            f"The embedded corpus cannot be made in {corpus_dir}: {error.strerror}. Give another --data.corpus_dir."
        ) from None


def _documents(library: Path) -> Iterator[Document]:
    names = (file.relative_to(library) for file in library.rglob("*.py"))
    # In the order of a hash, so that each shard is a sample of the whole library and not one package.
    kept = sorted((name.as_posix() for name in names if _is_worth_learning(name)), key=_scattered)
    if not kept:
        raise DataError(
            f"The corpus is empty: {library} has no Python source. Install the full Python, or make a corpus of your "
            "own with tools/make_shards.py and give it as --data.manifest."
        )
    for name in kept:
        try:
            text = (library / name).read_bytes().decode("utf-8")
        except (OSError, UnicodeDecodeError):
            continue  # a dangling link, or one of the few sources in Latin-1
        if text:
            yield Document(name, text)


def _scattered(name: str) -> str:
    return xxhash.xxh3_64_hexdigest(name.encode())


def _is_worth_learning(name: Path) -> bool:
    if (_FOREIGN | _TESTS).intersection(name.parts[:-1]):
        return False
    return not any(PurePosixPath(name.as_posix()).match(table) for table in _TABLES)
