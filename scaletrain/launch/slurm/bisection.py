"""Which node of several makes their all-reduce slow or silent: halves, then pairs with a node known to be good."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Outcome = Literal["ok", "slow", "silent"]
Probe = Callable[[Sequence[Sequence[str]]], Sequence[Outcome]]
"""Tests disjoint groups of at least two nodes at the same time."""

_SMALLEST = 3  # a group of two or three cannot be halved into groups


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Attributes:
        faulty: Nodes with which no all-reduce passes, and how it fails.
        unclear: Groups that fail without a node being to blame.
        rounds: How many times groups were tested.
    """

    faulty: dict[str, Outcome]
    unclear: tuple[tuple[str, ...], ...]
    rounds: int


def find_faulty(nodes: Sequence[str], probe: Probe) -> Diagnosis:
    """Finds the nodes that are to blame.

    One faulty node among n is found after about log2(n) rounds. With two good nodes or more, all faulty ones are named.

    Args:
        nodes: All of them; that they fail together is known.
        probe: Tests groups.

    Returns:
        The diagnosis.
    """
    search = _Search(probe)
    suspects = search.halve(list(nodes))
    if not suspects:
        # Each half is good by itself, and all of them together are not: what lies between the halves.
        middle = len(nodes) // 2
        return Diagnosis({}, (tuple(nodes[:middle]), tuple(nodes[middle:])), search.rounds)
    suspects = search.find_good_pair(suspects)
    if not search.good:
        return Diagnosis({}, (tuple(suspects),), search.rounds)
    return Diagnosis(search.pair_with_good(suspects), (), search.rounds)


class _Search:
    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self._failed: set[frozenset[str]] = set()
        self.good: list[str] = []
        self.rounds = 0

    def halve(self, nodes: list[str]) -> list[str]:
        """Halves what fails until nothing can be halved; returns the nodes of the groups that failed last."""
        suspects: list[str] = []
        failing = [nodes]
        self._failed.add(frozenset(nodes))
        while failing:
            suspects += [node for group in failing if len(group) <= _SMALLEST for node in group]
            larger = [group for group in failing if len(group) > _SMALLEST]
            halves = [half for group in larger for half in (group[: len(group) // 2], group[len(group) // 2 :])]
            failing = [half for half, outcome in zip(halves, self._test(halves), strict=True) if outcome != "ok"]
        return suspects

    def find_good_pair(self, suspects: list[str]) -> list[str]:
        """Where no node is known to be good: tries pairs until one passes; returns who is suspected still."""
        for pairs in _tournament(suspects):
            if self.good:
                break
            self._test([pair for pair in pairs if frozenset(pair) not in self._failed])
        return [node for node in suspects if node not in self.good]

    def pair_with_good(self, suspects: list[str]) -> dict[str, Outcome]:
        """Tests each suspect beside a good node; returns those that fail."""
        faulty: dict[str, Outcome] = {}
        while suspects:
            now, suspects = suspects[: len(self.good)], suspects[len(self.good) :]
            outcomes = self._test([[good, node] for good, node in zip(self.good, now, strict=False)])
            faulty |= {node: outcome for node, outcome in zip(now, outcomes, strict=True) if outcome != "ok"}
        return faulty

    def _test(self, groups: list[list[str]]) -> Sequence[Outcome]:
        if not groups:
            return ()
        self.rounds += 1
        outcomes = self._probe(groups)
        for group, outcome in zip(groups, outcomes, strict=True):
            if outcome == "ok":
                self.good += [node for node in group if node not in self.good]
            else:
                self._failed.add(frozenset(group))
        return outcomes


def _tournament(nodes: list[str]) -> Iterator[list[list[str]]]:
    """All pairs, in rounds in which each node stands once: one stays, the others go round."""
    ring: list[str | None] = [*nodes, *([None] if len(nodes) % 2 else [])]
    for _ in range(len(ring) - 1):
        pairs = zip(ring[: len(ring) // 2], reversed(ring[len(ring) // 2 :]), strict=True)
        yield [[one, other] for one, other in pairs if one is not None and other is not None]
        ring = [ring[0], ring[-1], *ring[1:-1]]
