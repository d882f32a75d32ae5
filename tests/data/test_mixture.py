from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaletrain.data.mixture import BLOCK, PERIOD, Mixture, Phase, weight_units

UNITS = BLOCK * PERIOD
weights = st.integers(2, 5).flatmap(
    lambda n: st.lists(st.sampled_from([0.0, 1.0, 1e-12]) | st.floats(0, 1e6), min_size=n, max_size=n).filter(any)
)


@given(weights)
def test_weights_become_whole_shares(weights: list[float]) -> None:
    units = weight_units(weights)
    assert sum(units) == UNITS
    for weight, share in zip(weights, units, strict=True):
        assert (share == 0) == (weight == 0)
        exact = Fraction(weight) / sum(map(Fraction, weights)) * UNITS
        # A share is exact to one unit, but for what the smallest ones are given, which the largest has less.
        assert abs(share - exact) < (1 if weight < max(weights) else len(weights))


@pytest.mark.parametrize(
    ("weights", "units"),
    [
        ([1.0], [UNITS]),
        ([3, 1], [UNITS * 3 // 4, UNITS // 4]),
        ([1, 1, 1], [349526, 349525, 349525]),
        ([1e-300, 0.0, 1.0], [1, 0, UNITS - 1]),
        ([1e308, 1e308], [UNITS // 2, UNITS // 2]),
    ],
)
def test_weights_that_do_not_divide(weights: list[float], units: list[int]) -> None:
    assert weight_units(weights) == units


phases = st.lists(st.integers(0, 400), max_size=2).flatmap(
    lambda ends_of_phases: st.tuples(
        st.just(sorted(ends_of_phases)), *[st.tuples(*[st.sampled_from([0.0, 1, 2, 0.3, 1e-9])] * 3).filter(any)] * 3
    )
)


def make_mixture(drawn: tuple, num_lanes: int, seed: int) -> Mixture:
    ends_of_phases, *weights = drawn
    return Mixture(
        [Phase(*phase) for phase in zip([*ends_of_phases, None], weights[: len(ends_of_phases) + 1], strict=True)],
        num_lanes,
        seed,
    )


@settings(max_examples=30, deadline=None)
@given(phases, st.integers(1, 3), st.integers(0, 2**63 - 1))
def test_the_closed_form_counts_as_walking_does(drawn: tuple, num_lanes: int, seed: int) -> None:
    mixture = make_mixture(drawn, num_lanes, seed)
    lane = num_lanes - 1
    counted = [0, 0, 0]
    for place in range(700):
        if place % 50 == 0 or place in drawn[0]:
            assert mixture.counts(lane, place).tolist() == counted
        source, number = mixture.locate(lane, place)
        assert number == counted[source]
        if place % 37 == 0:
            assert mixture.place_of(lane, source, number, 700) == place
            assert mixture.place_of(lane, source, number, place) is None
        counted[source] += 1


@settings(max_examples=30, deadline=None)
@given(phases, st.integers(0, 2**63 - 1), st.integers(0, 10**13))
def test_places_far_out_are_found_and_found_again(drawn: tuple, seed: int, place: int) -> None:
    mixture = make_mixture(drawn, 2, seed)
    source, number = mixture.locate(1, place)
    before, behind = mixture.counts(1, place), mixture.counts(1, place + 1)
    assert number == before[source] and before.sum() == place
    assert (behind - before).tolist() == [int(other == source) for other in range(3)]
    assert mixture.place_of(1, source, number, place + 1) == place


@settings(max_examples=30, deadline=None)
@given(weights, st.integers(0, 2**63 - 1), st.integers(0, 10**9))
def test_shares_hold_in_each_block_and_exactly_in_each_period(weights: list[float], seed: int, first: int) -> None:
    mixture = Mixture([Phase(None, tuple(weights))], 1, seed)
    units = np.array(weight_units(weights))
    ends = [mixture.counts(0, block * BLOCK) for block in range(first, first + 40)]
    for behind, before in pairwise(ends[::-1]):
        assert (np.abs((behind - before) - units / PERIOD) < 1).all()
    # Over many blocks little adds up: 4.3 places is the most that a search over thousands of weights found.
    assert all((np.abs(ends[n] - ends[0] - units / PERIOD * n) < 5).all() for n in range(40))
    assert (mixture.counts(0, (first + PERIOD) * BLOCK) - ends[0]).tolist() == units.tolist()


def test_sources_are_mixed_within_a_block() -> None:
    mixture = Mixture([Phase(None, (0.5, 0.5))], 1, seed=1)
    sources = [mixture.locate(0, place)[0] for place in range(10 * BLOCK)]
    changes = sum(one != other for one, other in pairwise(sources))
    assert changes == pytest.approx(5 * BLOCK, rel=0.1)
    assert sources[:BLOCK] != sources[BLOCK : 2 * BLOCK]


def test_lanes_and_phases_round_at_times_of_their_own() -> None:
    # The tenth of a block is 25.6 places: with the same rounding in all lanes they would all have 25 or all 26.
    mixture = Mixture([Phase(None, (0.1, 0.9))], 64, seed=1)
    firsts = {int(mixture.counts(lane, BLOCK)[0]) for lane in range(64)}
    assert firsts == {25, 26}
