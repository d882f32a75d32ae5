"""Faulty nodes are named exactly as long as two good ones are left, in few rounds."""

import math
from collections.abc import Callable, Collection, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaletrain.launch.slurm.bisection import Diagnosis, Outcome, find_faulty
from scaletrain.launch.slurm.suspects import choose_suspect


def probe_of(nodes: Sequence[str], faulty: dict[str, Outcome]) -> Callable[[Sequence[Sequence[str]]], list[Outcome]]:
    """A network in which a group is as bad as its worst node; it refuses what a real one could not do."""

    def probe(groups: Sequence[Sequence[str]]) -> list[Outcome]:
        tested = [node for group in groups for node in group]
        assert len(tested) == len(set(tested)), "groups that are tested at once must be disjoint"
        assert all(len(group) >= 2 for group in groups)
        assert set(nodes) not in map(set, groups), "that the whole fails is known"
        outcomes: list[Outcome] = []
        for group in groups:
            found = {faulty.get(node, "ok") for node in group}
            outcomes.append("silent" if "silent" in found else "slow" if "slow" in found else "ok")
        return outcomes

    return probe


@given(data=st.data(), count=st.integers(3, 64))
def test_all_faulty_nodes_are_named(data: st.DataObject, count: int) -> None:
    nodes = [f"n{number}" for number in range(count)]
    bad = data.draw(st.lists(st.sampled_from(nodes), unique=True, min_size=1, max_size=count - 2))
    faulty: dict[str, Outcome] = {node: data.draw(st.sampled_from(["slow", "silent"])) for node in bad}
    found = find_faulty(nodes, probe_of(nodes, faulty))
    assert found.faulty == faulty
    assert found.unclear == ()


@given(count=st.integers(4, 64), data=st.data())
def test_one_faulty_node_takes_few_rounds(count: int, data: st.DataObject) -> None:
    nodes = [f"n{number}" for number in range(count)]
    bad = data.draw(st.sampled_from(nodes))
    assert find_faulty(nodes, probe_of(nodes, {bad: "silent"})).rounds <= math.log2(count) + 2


def test_two_nodes_cannot_be_told_apart() -> None:
    found = find_faulty(["n1", "n2"], probe_of(["n1", "n2"], {"n2": "slow"}))
    assert (found.faulty, found.unclear, found.rounds) == ({}, (("n1", "n2"),), 0)


def test_a_fault_between_the_halves_is_no_nodes_fault() -> None:
    nodes = ["n1", "n2", "n3", "n4"]
    found = find_faulty(nodes, probe_of(nodes, {}))
    assert (found.faulty, found.unclear) == ({}, (("n1", "n2"), ("n3", "n4")))


def probe_of_links(broken: Collection[frozenset[str]]) -> Callable[[Sequence[Sequence[str]]], list[Outcome]]:
    """A network of good nodes, some of which do not reach each other."""

    def probe(groups: Sequence[Sequence[str]]) -> list[Outcome]:
        return ["silent" if any(link <= set(group) for link in broken) else "ok" for group in groups]

    return probe


def test_a_fault_within_a_half_is_told_by_its_quarters() -> None:
    nodes = [f"n{number}" for number in range(8)]
    links = [frozenset((one, other)) for one in nodes[4:6] for other in nodes[6:]]
    found = find_faulty(nodes, probe_of_links(links))
    assert (found.faulty, found.unclear) == ({}, (("n4", "n5"), ("n6", "n7")))


@given(data=st.data(), count=st.integers(4, 64))
def test_no_node_is_blamed_for_one_connection(data: st.DataObject, count: int) -> None:
    nodes = [f"n{number}" for number in range(count)]
    link = frozenset(data.draw(st.lists(st.sampled_from(nodes), unique=True, min_size=2, max_size=2)))
    found = find_faulty(nodes, probe_of_links([link]))
    assert found.faulty == {}
    assert link <= {node for group in found.unclear for node in group}


@pytest.mark.parametrize("link", [("n1", "n2"), ("n1", "n3"), ("n2", "n3")])
def test_of_three_nodes_none_is_blamed_for_one_connection(link: tuple[str, str]) -> None:
    assert find_faulty(["n1", "n2", "n3"], probe_of_links([frozenset(link)])).faulty == {}


def test_what_failed_once_and_never_again_blames_nobody() -> None:
    assert find_faulty(["n1", "n2", "n3"], probe_of_links([])) == Diagnosis({}, (), 2)


def test_of_two_the_later_is_suspected_first() -> None:
    assert choose_suspect([("n1", "n2")]) == ("n2", frozenset())


def test_who_fails_with_another_partner_is_to_blame_and_clears_the_first() -> None:
    assert choose_suspect([("n1", "n2"), ("n1", "n3")]) == ("n1", frozenset({"n2", "n3"}))
    assert choose_suspect([("n1", "n2"), ("n3", "n4")]) == ("n4", frozenset())
