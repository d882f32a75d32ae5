"""Turns what a user writes for many shards into the list of them: braces, wildcards, several patterns."""

import glob
import os
import re
from collections import Counter

from braceexpand import braceexpand

from scaletrain.data.manifest_paths import is_fit_for_manifest
from scaletrain.errors import DataError
from scaletrain.storage.survey import Surveyor
from scaletrain.storage.urls import PIPE, check_url, is_remote, local_path, printable, scheme_of

_WILDCARD = re.compile(r"[*?\[]")
_REMOTE_WILDCARD = re.compile(r"[*\[]")  # a question mark begins the query of a URL
_BEFORE_COMMAND = re.compile(rf"(?:^|,)\s*(?={PIPE}:)")


def list_shards(patterns: str, surveyor: Surveyor) -> list[str]:
    """Lists the shards that patterns stand for.

    Args:
        patterns: Paths and URLs, separated by commas; ``{000..999}`` and ``{a,b}`` are expanded as by a shell, ``*``,
            ``?`` and ``[...]`` where files can be listed. Behind ``pipe:`` all up to the next ``,pipe:`` is one
            command, with its commas.
        surveyor: Lists what is remote.

    Returns:
        Absolute paths and URLs: in the order of the patterns, within a wildcard by name.

    Raises:
        DataError: A pattern fits nothing, two give the same shard, or a name cannot stand in a manifest.
    """
    found = []
    for pattern in split_patterns(patterns):
        try:
            expanded = list(braceexpand(pattern, escape=False))
        except ValueError:
            raise DataError(f"The braces of {printable(pattern)!r} are not balanced. Write {{000..999}}.") from None
        for name in expanded:
            found += _remote(name, surveyor) if is_remote(name) else _local(local_path(name))
    if not found:
        raise DataError("No shard is named. Give --shards 'FOLDER/*.tar'.")
    if unfit := [name for name in found if not is_fit_for_manifest(name)]:
        raise DataError(
            f"{printable(unfit[0])!a} holds control characters or bytes that are not UTF-8, which a manifest cannot "
            "name. Rename it."
        )
    twice = [name for name, count in Counter(found).items() if count > 1]
    if twice:
        raise DataError(f"{printable(twice[0])} is given {found.count(twice[0])} times. Give each shard once.")
    return found


def split_patterns(patterns: str) -> list[str]:
    """Parts between the commas that are outside of braces, and behind them commands up to the next ``,pipe:``."""
    patterns, *commands = _BEFORE_COMMAND.split(patterns)
    parts, depth, start = [], 0, 0
    for place, letter in enumerate(patterns):
        depth += (letter == "{") - (letter == "}")
        if letter == "," and depth <= 0:
            parts.append(patterns[start:place])
            start = place + 1
    return [part.strip() for part in [*parts, patterns[start:], *commands] if part.strip()]


def _remote(name: str, surveyor: Surveyor) -> list[str]:
    if scheme_of(name) == PIPE or not _REMOTE_WILDCARD.search(name):
        check_url(name, surveyor.policy.allow_pipe)
        return [name]
    found = surveyor.find(name)
    if not found:
        raise DataError(f"{printable(name)} fits no file. Check the pattern, and whether that storage can be listed.")
    return found


def _local(name: str) -> list[str]:
    path = os.path.abspath(os.path.expanduser(name))
    if os.path.exists(path) or not _WILDCARD.search(path):
        return [path]
    found = sorted(glob.glob(path, recursive=True))
    if not found:
        raise DataError(f"{path} fits no file. Check the pattern; ** stands for any number of folders.")
    return found
