"""Into how many bands the signatures of near copies are cut, as datasketch chooses it."""

from functools import cache
from typing import Any

from scaletrain.errors import ConfigError


@cache
def choose_bands(threshold: float, permutations: int) -> tuple[int, int]:
    """Chooses what makes wrong answers of both kinds rarest.

    Args:
        threshold: Share of common shingles from which two documents are to be taken for near copies.
        permutations: Entries of a signature.

    Returns:
        Number of bands, and entries in each.

    Raises:
        ConfigError: There are not even two bands, or datasketch is not installed.
    """
    try:
        lsh = load_datasketch().MinHashLSH(threshold=threshold, num_perm=permutations)
    except ValueError:
        raise ConfigError(
            f"near_threshold = {threshold} leaves less than two bands of near_permutations = {permutations}: lower "
            "the threshold, or raise the permutations"
        ) from None
    return int(lsh.b), int(lsh.r)


def load_datasketch() -> Any:
    """Imports datasketch.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import datasketch
    except ImportError:
        raise ConfigError(
            "duplicates.near is true, but datasketch is not installed. Install it with pip install "
            "'scaletrain[corpus]', or set duplicates.near to false."
        ) from None
    return datasketch
