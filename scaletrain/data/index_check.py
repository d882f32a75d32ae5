"""Checks the index of a shard against what the manifest says of it: neither is believed alone."""

import numpy as np
from numpy.typing import NDArray

from scaletrain.data.foreign import most_tokens
from scaletrain.data.manifest import NATIVE_FIELD, Manifest, ShardEntry
from scaletrain.data.shard_index import ShardIndex
from scaletrain.errors import DataError

_REMEDY = "Copy shard and index again from where they came, or build the corpus again with tools/make_shards.py."


def check_index(path: str, index: ShardIndex, entry: ShardEntry, manifest: Manifest) -> None:
    """Checks that an index is the one of its shard, and that what it says can be.

    Args:
        path: The index, as it may be shown.
        index: Its content.
        entry: What the manifest says of the shard.
        manifest: The corpus.

    Raises:
        DataError: It is another shard's, or names what no shard can hold.
    """
    is_native = manifest.content.field == NATIVE_FIELD
    dtype = manifest.token_dtype
    facts: dict[str, tuple[object, object]] = {
        "content": (index.content, manifest.content),
        "size": (index.size, entry.size),
        "checksum": (index.checksum, entry.checksum),
        "documents": (len(index.offsets), entry.documents),
        "tokens": (_total(index.n_tokens), entry.tokens),
        "bytes": (_total(index.n_bytes), entry.bytes),
        "values of a document": (0 if index.values is None else index.values.shape[1], len(manifest.values)),
    }
    if is_native:
        facts["dtype"] = (index.dtype, dtype.name)
    for name, (found, expected) in facts.items():
        if found != expected:
            raise DataError(
                f"{path} is not the index of {entry.path}: its {name} is {found}, the manifest says {expected}. "
                f"{_REMEDY}"
            )
    if index.values is not None and not _are_possible(index.values, len(manifest.classes)):
        raise DataError(f"{path} names values that are not finite, or classes that there are not. {_REMEDY}")
    columns = (index.offsets, index.sizes, index.n_tokens, index.n_bytes)
    if not entry.documents or min(int(column.min()) for column in columns) < 0:
        raise DataError(f"{path} names negative places or numbers, or none. {_REMEDY}")
    if (index.sizes > index.size - index.offsets).any():  # the sum could wrap around
        raise DataError(f"{path} names places outside of {entry.path}, of {index.size} bytes. {_REMEDY}")
    if is_native:
        counts, rest = np.divmod(index.sizes, dtype.itemsize)
        is_possible = (counts == index.n_tokens) & (rest == 0)
    else:
        is_possible = index.n_tokens <= most_tokens(manifest.content, index.sizes)
    if not is_possible.all():
        document = int(is_possible.argmin())
        raise DataError(
            f"{path} says that document {document} of {entry.path} gives {index.n_tokens[document]} tokens, which "
            f"its {index.sizes[document]} bytes cannot. {_REMEDY}"
        )
    if entry.longest not in (None, longest := int(index.n_tokens.max())):
        raise DataError(
            f"{path} is not the index of {entry.path}: its longest document has {longest} tokens, the manifest says "
            f"{entry.longest}. {_REMEDY}"
        )


def _are_possible(values: NDArray[np.float64], n_classes: int) -> bool:
    """Whether all values are finite, and with classes either the number of one or for each of them 0 or 1."""
    largest = n_classes - 1 if values.shape[1] == 1 else 1
    of_classes = not n_classes or (values == np.floor(values)) & (values >= 0) & (values <= largest)
    return bool((np.isfinite(values) & of_classes).all())


def _total(column: NDArray[np.int64]) -> int:
    """Sum that does not wrap around."""
    return (int((column >> 32).sum()) << 32) + int((column & 0xFFFFFFFF).sum())
