"""Which of several nodes to do without, where they fail together and none can be told apart."""

from collections import Counter
from collections.abc import Sequence


def choose_suspect(groups: Sequence[Sequence[str]]) -> tuple[str, frozenset[str]]:
    """Chooses among the nodes of the last group.

    Args:
        groups: Nodes that failed together, in one start after the other; never empty.

    Returns:
        The node that has failed in most groups, the last of several such; and the nodes of earlier groups that are
        cleared by it: they have failed together with it only, and it with others as well.
    """
    counts = Counter(node for group in groups for node in group)
    suspect = max(groups[-1], key=lambda node: (counts[node], groups[-1].index(node)))
    if counts[suspect] < 2:
        return suspect, frozenset()
    others = set(counts) - {suspect}
    cleared = {node for node in others if all(suspect in group for group in groups if node in group)}
    return suspect, frozenset(cleared)
