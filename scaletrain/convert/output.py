"""A result that appears complete or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from scaletrain.errors import ConfigError


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Makes a folder that gets its name once all in it is written and forced to the disk.

    Args:
        out: Its name; nothing may have it yet.

    Yields:
        An empty folder beside it. What an interrupted conversion to the same name has left is deleted before.

    Raises:
        ConfigError: There is something of that name, it cannot be made, or another conversion is writing it.
    """
    with _draft(out) as draft:
        draft.mkdir()
        yield draft
        for path in draft.rglob("*"):
            if path.is_file():
                sync(path)
        for folder in (draft, *(path for path in draft.rglob("*") if path.is_dir())):
            sync(folder)


@contextlib.contextmanager
def new_file(out: Path) -> Iterator[Path]:
    """Makes a file that gets its name once it is written and forced to the disk; see ``new_folder``."""
    with _draft(out) as draft:
        yield draft
        sync(draft)


def sync(path: Path) -> None:
    """Forces a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _draft(out: Path) -> Iterator[Path]:
    out = out.absolute()
    if not out.name:
        _refuse_existing(out)  # the root
    draft = out.with_name(f".{out.name}.partial")
    with _new_parents(out), _lock(out):
        try:
            _refuse_existing(out)
            _delete(draft)
            yield draft
            _refuse_existing(out)  # made by someone else in the meantime
            os.rename(draft, out)
            sync(out.parent)
        except OSError as error:
            raise ConfigError(f"--out {out} cannot be written: {error.strerror or error}{_free(out)}") from error
        finally:
            _delete(draft)


@contextlib.contextmanager
def _new_parents(out: Path) -> Iterator[None]:
    """Makes the folders above ``out``; those that are empty in the end, as after a refusal, are gone again."""
    try:
        missing = [folder for folder in out.parents if not folder.exists()]
    except OSError as error:
        raise _unmakeable(out, error) from None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise _unmakeable(out, error) from None
    finally:
        for folder in missing:
            with contextlib.suppress(OSError):
                folder.rmdir()


@contextlib.contextmanager
def _lock(out: Path) -> Iterator[None]:
    lock = FileLock(out.with_name(f".{out.name}.lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise ConfigError(f"--out {out} is being written by another process; wait for it, or give another") from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _unmakeable(out: Path, error: OSError) -> ConfigError:
    return ConfigError(f"--out {out} cannot be made: {error.strerror or error}; give another")


def _refuse_existing(out: Path) -> None:
    if out.exists() or out.is_symlink():
        raise ConfigError(f"--out {out} exists already; give another, or delete it first")


def _delete(draft: Path) -> None:
    if draft.is_dir() and not draft.is_symlink():
        shutil.rmtree(draft)
    else:
        draft.unlink(missing_ok=True)


def _free(out: Path) -> str:
    with contextlib.suppress(OSError):
        return f"; {shutil.disk_usage(out.parent).free / 2**30:.2f} GiB are free there"
    return ""
