"""What a manifest may name: paths in its own folder, and for shards also absolute paths and URLs."""

import re
from typing import Annotated

from pydantic import AfterValidator

from scaletrain.storage.urls import is_remote

_UNFIT = re.compile("[\0-\x1f\x7f\ud800-\udfff]")


def is_fit_for_manifest(path: str) -> bool:
    """Whether a path or URL can be written down: no control characters, and no bytes that are not UTF-8."""
    return not _UNFIT.search(path)


def _inside_folder(path: str) -> str:
    """A manifest may come from a stranger: what it names beside itself lies in its own folder."""
    if (
        not is_fit_for_manifest(path)
        or not path.strip("./")
        or path.startswith("/")
        or ":" in path
        or ".." in path.split("/")
    ):
        raise ValueError("must be a path inside the manifest's folder, without control characters")
    return path


def _shard_location(path: str) -> str:
    """Shards made elsewhere stay where they are; whether a URL may be opened is for the storage to say."""
    return path if is_fit_for_manifest(path) and (is_remote(path) or path.startswith("/")) else _inside_folder(path)


InnerPath = Annotated[str, AfterValidator(_inside_folder)]
ShardPath = Annotated[str, AfterValidator(_shard_location)]
