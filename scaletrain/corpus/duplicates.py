"""Finds documents that stood in the corpus before: exact copies by a hash, near copies by MinHash."""

from functools import cache
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from scaletrain.corpus.bands import choose_bands, load_datasketch
from scaletrain.corpus.rules import DuplicateRules

# Fixed, so that the same corpus gives the same answers everywhere.
_SEED = 1
# For each the signature's every entry is computed at once, a kilobyte and more.
_SHINGLES_AT_ONCE = 1 << 12


class ExactDuplicates:
    """Remembers the hash of each document: 16 bytes, about 100 in memory."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def is_copy(self, digest: int) -> bool:
        """Whether a document was asked about before; remembers it.

        Args:
            digest: The document's, from ``digest_of``.

        Returns:
            True from the second time on.
        """
        if digest in self._seen:
            return True
        self._seen.add(digest)
        return False


def digest_of(content: bytes) -> int:
    """The hash of a document in UTF-8 by which exact copies are known."""
    return xxhash.xxh3_128_intdigest(content)


class NearDuplicates:
    """Remembers the band keys of each document that stays: about 75 bytes a band, 9 bands by default."""

    def __init__(self) -> None:
        self._buckets: list[set[int]] = []

    def is_copy(self, bands: NDArray[np.uint64]) -> bool:
        """Whether an earlier document shares a band; remembers the document only if none does.

        Args:
            bands: What ``band_keys`` gave (bands,), uint64.

        Returns:
            True if a document nearly like it stays already.
        """
        if not self._buckets:
            self._buckets = [set() for _ in bands]
        keys = bands.tolist()
        if any(key in bucket for key, bucket in zip(keys, self._buckets, strict=True)):
            return True
        for key, bucket in zip(keys, self._buckets, strict=True):
            bucket.add(key)
        return False


def band_keys(text: str, rules: DuplicateRules) -> NDArray[np.uint64]:
    """Computes what near copies have in common.

    The shingles of a text are its runs of n words. Two texts of which a share s of all shingles is common agree in
    each entry of their signatures with probability s. A signature is cut into b bands of r entries, so that they
    share a band with probability 1 - (1 - s**r)**b.

    Args:
        text: The document.
        rules: Threshold, length of the signature, words in a shingle.

    Returns:
        One hash of each band (b,), uint64. Letters' case and white space do not matter.

    Raises:
        ConfigError: datasketch is not installed.

    Source:
        Broder 1997, On the resemblance and containment of documents; bands: Leskovec et al., Mining of Massive
        Datasets, section 3.4. Signatures and the choice of b and r are those of datasketch.
    """
    words = text.lower().split()
    n = rules.near_shingle_words
    shingles = (" ".join(words[start : start + n]) for start in range(max(1, len(words) - n + 1)))
    hashes = np.unique(np.fromiter((xxhash.xxh3_64_intdigest(text.encode()) for text in shingles), dtype=np.uint64))
    signature = _empty_signature(rules.near_permutations).copy()
    for start in range(0, len(hashes), _SHINGLES_AT_ONCE):
        signature.update_batch(hashes[start : start + _SHINGLES_AT_ONCE])
    values = np.ascontiguousarray(signature.hashvalues)
    bands, rows = choose_bands(rules.near_threshold, rules.near_permutations)
    keys = [xxhash.xxh3_64_intdigest(values[band * rows : (band + 1) * rows].tobytes()) for band in range(bands)]
    return np.array(keys, dtype=np.uint64)


def bands_of(rules: DuplicateRules) -> tuple[int, int]:
    """Number of bands and entries in each, for the threshold: what makes wrong answers of both kinds rarest."""
    return choose_bands(rules.near_threshold, rules.near_permutations)


@cache
def _empty_signature(permutations: int) -> Any:
    # 64 bits, since with 32 a hundred thousand shingles of a long document begin to collide.
    return load_datasketch().MinHash(num_perm=permutations, seed=_SEED, scheme="affine64", hashfunc=lambda value: value)
