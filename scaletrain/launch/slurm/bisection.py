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
        faulty: Nodes with which no all-reduce passes, and how it fails: each failed beside two good nodes.
        unclear: Groups that fail without a node being to blame: nodes that cannot be told apart, nodes that fail with
            each other only, and the two halves between which something is wrong (a switch).
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
    groups = search.halve(list(nodes))
    suspects = search.find_good_pair([node for group in groups for node in group])
    if not search.good:
        return Diagnosis({}, (tuple(suspects),), search.rounds)
    faulty = search.pair_with_good(suspects)
    # The whole was seen to fail once; a smaller group has failed again and again, and it is not one of its nodes.
    together = [tuple(group) for group in groups if len(group) < len(nodes) and not faulty.keys() & set(group)]
    return Diagnosis(faulty, (*search.between, *together), search.rounds)


class _Search:
    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self._failed: set[frozenset[str]] = set()
        self.good: list[str] = []
        self.between: list[tuple[str, ...]] = []
        self.rounds = 0

    def halve(self, nodes: list[str]) -> list[list[str]]:
        """Halves what fails until nothing can be halved; returns the groups that failed last."""
        smallest: list[list[str]] = []
        failing = [nodes]
        self._failed.add(frozenset(nodes))
        while failing:
            smallest += [group for group in failing if len(group) <= _SMALLEST]
            larger = [group for group in failing if len(group) > _SMALLEST]
            halves = [half for group in larger for half in (group[: len(group) // 2], group[len(group) // 2 :])]
            outcomes = self._test(halves)
            for left in range(0, len(halves), 2):
                if outcomes[left] == outcomes[left + 1] == "ok":
                    # Each half is good by itself, and both together are not: what lies between them.
                    self.between += [tuple(halves[left]), tuple(halves[left + 1])]
            failing = [half for half, outcome in zip(halves, outcomes, strict=True) if outcome != "ok"]
        return smallest

    def find_good_pair(self, suspects: list[str]) -> list[str]:
        """Where no node is known to be good: tries pairs until one passes; returns who is suspected still."""
        for pairs in _tournament(suspects):
            if self.good:
                break
            self._test([pair for pair in pairs if frozenset(pair) not in self._failed])
        return [node for node in suspects if node not in self.good]

    def pair_with_good(self, suspects: list[str]) -> dict[str, Outcome]:
        """Tests each suspect beside a good node, and who fails beside another one; returns those that fail twice."""
        faulty: dict[str, Outcome] = {}
        while suspects:
            good = list(self.good)
            now, suspects = suspects[: len(good)], suspects[len(good) :]
            first = self._test([[partner, node] for partner, node in zip(good, now, strict=False)])
            failed = [place for place, outcome in enumerate(first) if outcome != "ok"]
            # A node is not given up for what may be wrong with one connection, or at one moment.
            others = [good[(place + 1) % len(good)] for place in failed]
            second = self._test([[partner, now[place]] for partner, place in zip(others, failed, strict=True)])
            for place, outcome in zip(failed, second, strict=True):
                if outcome == "ok":
                    self.between.append((good[place], now[place]))
                else:
                    faulty[now[place]] = outcome
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
