"""Who is said to hold the others up, from windows that were made up: causes, noise, nodes, and the past."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scaletrain.monitors import names
from scaletrain.monitors.rank_heat_map import RankHeatMap
from scaletrain.monitors.stragglers import RankTimes, Straggler, StragglerJudge, link_times, lower_median, parts_of

USUAL = RankTimes(step_s=1.0, data_s=0.001, compute_s=0.5, compute_parts_s=[0.5] * 5, link_s=0.0003)
SLOW = {
    "compute": {"compute_s": 0.55},
    "data": {"data_s": 0.101},
    "link": {"link_s": 0.0053},
}


class Ranks:
    """Ranks that are equal but for some noise and for what a test does to them."""

    def __init__(self, hosts: Sequence[str], noise: float = 0.005) -> None:
        self._random, self._noise, self._size = random.Random(7), noise, len(hosts)
        self.judge = StragglerJudge(hosts, slowdown=0.05)

    def window(self, slow: dict[int, dict[str, float]] | None = None) -> list[Straggler]:
        """One more window, in which some ranks are slow."""
        times = [replace(USUAL, **(slow or {}).get(rank, {})) for rank in range(self._size)]
        return self.judge.judge([self._noisy(one) for one in times])

    def _noisy(self, times: RankTimes) -> RankTimes:
        # Unless a test says more of the parts, they are as slow as the whole.
        slow = times.compute_s / USUAL.compute_s if times.compute_parts_s == USUAL.compute_parts_s else 1
        parts = [slow * self._factor() * part for part in times.compute_parts_s]
        return replace(times, compute_s=self._factor() * times.compute_s, compute_parts_s=parts)

    def _factor(self) -> float:
        return 1 + self._random.gauss(0, self._noise)


@pytest.mark.parametrize("cause", SLOW)
@pytest.mark.parametrize("hosts", [["n1"] * 4, ["n1", "n2"], ["n1"] * 8 + ["n2"] * 8], ids=len)
def test_a_slow_rank_is_named_once_after_two_windows(cause: str, hosts: list[str]) -> None:
    ranks, slow = Ranks(hosts), {1: SLOW[cause]}
    assert [ranks.window() for _ in range(5)] == [[]] * 5
    assert ranks.window(slow) == []
    (found,) = ranks.window(slow)
    assert (found.cause, found.ranks, found.host, found.is_node) == (cause, (1,), hosts[1], False)
    assert found.score > 3.5 and found.past_share is not None and abs(found.past_share) < 0.02
    if cause != "link":
        assert found.share == pytest.approx(0.1, abs=0.02) and f"by {found.share:.0%}" in found.describe()
    assert [ranks.window(slow) for _ in range(30)] == [[]] * 30 and ranks.judge.slow == {1}


@pytest.mark.parametrize("cause", SLOW)
def test_one_window_is_not_enough(cause: str) -> None:
    ranks = Ranks(["n1"] * 4)
    for _ in range(10):
        assert ranks.window({1: SLOW[cause]}) == [] and ranks.window() == []


def test_a_rank_that_was_slow_from_the_start_is_named_too() -> None:
    ranks = Ranks(["n1"] * 4)
    windows = [ranks.window({3: SLOW["compute"]}) for _ in range(2)]
    assert windows[0] == [] and windows[1][0].ranks == (3,) and windows[1][0].past_share is None
    assert "before" not in windows[1][0].describe()


def test_one_that_recovers_can_be_named_again() -> None:
    ranks, slow = Ranks(["n1"] * 4), {2: SLOW["compute"]}
    found = [ranks.window(slow) for _ in range(3)] + [ranks.window()]
    assert ranks.judge.slow == {2}
    found += [ranks.window() for _ in range(25)]
    assert ranks.judge.slow == frozenset()
    found += [ranks.window(slow) for _ in range(3)]
    assert [len(one) for one in found if one] == [1, 1]


@pytest.mark.parametrize("cause", SLOW)
def test_a_node_whose_ranks_are_all_slow_is_named_as_one(cause: str) -> None:
    ranks = Ranks([f"n{rank // 4}" for rank in range(12)])
    slow = {rank: SLOW[cause] for rank in range(4, 8)}
    # One of them lies just below the limit: it is the node that is slow.
    slow[6] = {"compute": {"compute_s": 0.525}, "data": {"data_s": 0.04}, "link": {"link_s": 0.00081}}[cause]
    windows = [ranks.window() for _ in range(3)] + [ranks.window(slow) for _ in range(3)]
    (found,) = (one for window in windows for one in window)
    assert (found.host, found.ranks, found.is_node) == ("n1", (4, 5, 6, 7), True)
    assert "all ranks of n1" in found.describe()


def test_a_node_of_which_a_rank_was_named_before_is_told_without_a_past() -> None:
    """What that rank did in its last windows is its slowness, and not what the node was like before."""
    ranks = Ranks([f"n{rank // 4}" for rank in range(12)])
    found = [one for _ in range(5) for one in ranks.window()]
    found += [one for _ in range(12) for one in ranks.window({5: SLOW["compute"]})]
    slow = {rank: SLOW["compute"] for rank in range(4, 8)}
    found += [one for _ in range(3) for one in ranks.window(slow)]
    assert [(one.ranks, one.is_node) for one in found] == [((5,), False), ((4, 5, 6, 7), True)]
    assert found[0].past_share is not None and found[1].past_share is None
    assert "before" in found[0].describe() and "before" not in found[1].describe()


def test_the_slower_one_of_two_nodes_is_named() -> None:
    ranks = Ranks(["n0"] * 4 + ["n1"] * 4)
    windows = [ranks.window({rank: SLOW["compute"] for rank in range(4, 8)}) for _ in range(3)]
    assert [(one.host, one.is_node) for window in windows for one in window] == [("n1", True)]


def test_all_ranks_of_the_only_node_are_no_stragglers() -> None:
    ranks = Ranks(["n1"] * 4)
    for _ in range(5):
        ranks.window()
    slow = {rank: {"compute_s": 1.0, "data_s": 0.5, "link_s": 0.01} for rank in range(4)}
    assert [ranks.window(slow) for _ in range(5)] == [[]] * 5


def test_what_a_noisy_group_cannot_tell_is_not_told() -> None:
    # A tenth is within what these ranks differ by: among themselves, and from window to window.
    ranks = Ranks(["n1"] * 8, noise=0.1)
    assert [ranks.window() for _ in range(300)] == [[]] * 300


def test_a_rank_that_varies_by_itself_is_not_named_for_it() -> None:
    source, judge = random.Random(7), StragglerJudge(["n1"] * 4, slowdown=0.05)
    found = []
    for _ in range(300):
        unsteady = replace(USUAL, compute_s=0.5 * (1 + source.gauss(0, 0.08)))
        # The others do not vary at all: only its own past tells that this is nothing new.
        found.append(judge.judge([USUAL, USUAL, unsteady, USUAL]))
    assert found[20:] == [[]] * 280


def test_a_rank_that_comes_and_goes_over_many_windows_is_not_named_for_it() -> None:
    judge, found = StragglerJudge(["n1"] * 4, slowdown=0.05), []
    for window in range(200):
        usual = replace(USUAL, data_s=0.11)
        wave = replace(USUAL, data_s=0.11 + 0.1 * math.sin(2 * math.pi * window / 20))
        found.append(judge.judge([usual, usual, wave, usual]))
    # From one window to the next it differs by little, and yet it is no trend.
    assert found[20:] == [[]] * 180


@pytest.mark.parametrize("steady", [0, 3, 30])
@pytest.mark.parametrize("rate", [0.0025, 0.005, 0.01, 0.02])
@pytest.mark.parametrize("cause", ["compute", "data"])
def test_a_rank_that_gets_slower_bit_by_bit_is_named_soon_after_it_is_slow(
    cause: str, rate: float, steady: int
) -> None:
    ranks = Ranks(["n1"] * 4, noise=0.002)
    found = [ranks.window() for _ in range(steady)]
    for share in (rate * window for window in range(40)):
        slow = {"compute": {"compute_s": 0.5 * (1 + share)}, "data": {"data_s": 0.001 + share}}[cause]
        found.append(ranks.window({2: slow}))
    (named,) = (window for window, some in enumerate(found) if some)
    # It takes two windows in a row, and a noisy one may lie below the limit.
    assert 1 <= named - steady - round(0.05 / rate) <= 3


@pytest.mark.parametrize("quick_part", range(5))
def test_a_rank_that_was_slow_for_most_of_a_window_was_disturbed(quick_part: int) -> None:
    ranks = Ranks(["n1"] * 4)
    parts = [0.55] * 5
    parts[quick_part] = 0.5
    slow = {"compute_s": 0.55, "compute_parts_s": parts}
    assert [ranks.window({2: slow}) for _ in range(20)] == [[]] * 20
    assert ranks.judge.worst_shares["compute"] < 0.02


def test_one_that_is_slow_still_but_disturbed_is_not_named_again() -> None:
    ranks = Ranks(["n1"] * 4)
    slow, disturbed = SLOW["compute"], {"compute_s": 0.55, "compute_parts_s": [0.5, 0.6, 0.6, 0.6, 0.6]}
    windows = [ranks.window({2: kind}) for _ in range(5) for kind in (slow, slow, disturbed, disturbed, disturbed)]
    assert sum(map(len, windows)) == 1 and ranks.judge.slow == {2}


def test_what_slows_all_ranks_for_a_part_of_a_window_hides_no_slow_one() -> None:
    ranks = Ranks(["n1"] * 4)
    times = {rank: {"compute_parts_s": [0.5, 0.5, 0.9, 0.5, 0.5]} for rank in range(4)}
    times[2] = {"compute_s": 0.55, "compute_parts_s": [0.55, 0.55, 0.99, 0.55, 0.55]}
    assert [one.ranks for _ in range(5) for one in ranks.window(times)] == [(2,)]


@pytest.mark.parametrize("steps", [1, 4, 5, 8, 50])
def test_the_parts_of_a_window_are_of_about_the_same_length(steps: int) -> None:
    parts = parts_of(range(steps))
    assert [step for part in parts for step in part] == list(range(steps)) and len(parts) == min(5, steps)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_what_not_all_ranks_could_measure_is_left_out() -> None:
    ranks = Ranks(["n1"] * 4)
    unknown = {rank: {"compute_s": math.nan} for rank in range(4)}
    for _ in range(3):
        assert ranks.window({**unknown, 1: {"compute_s": math.nan, "data_s": 0.3}})[:0] == []
    assert ranks.judge.slow == {1} and set(ranks.judge.worst_shares) == {"data", "link"}


def test_a_slow_link_shows_with_both_neighbours() -> None:
    quick, slow = 0.1, 9.0
    # Rank 2 of a ring of five; and of two nodes of three ranks the second card of the second.
    assert link_times([quick, slow, slow, quick, quick], 1) == [quick, quick, slow, quick, quick]
    assert link_times([quick, quick, slow, quick, quick, slow, quick, quick, quick], 3)[5] == slow
    assert link_times([quick, slow], 1) == [quick, quick]  # which end of the only link it is nobody knows
    assert lower_median([4, 1, 2, 3]) == 2


def test_the_picture_shows_the_slow_rank() -> None:
    heat_map = RankHeatMap(4)
    for step in (10, 20, 30):
        heat_map.add(step, {"compute": [0.0, 2.0, 0.0, 0.0], "data": [0.0] * 4})
    pixels = heat_map.draw()
    height = pixels.shape[0] // 3
    is_red = (pixels[:, :, 0] > 170) & (pixels[:, :, 1] < 40)
    columns = np.flatnonzero(is_red[:height].any(axis=0))
    rows = np.flatnonzero(is_red[:height].any(axis=1))
    assert (len(columns), len(rows)) == (3 * 8, 16) and not is_red[height:].any()


@pytest.mark.parametrize("world_size", [2, 1000])
def test_the_picture_of_any_number_of_ranks_shows_the_slowest(world_size: int) -> None:
    heat_map = RankHeatMap(world_size)
    heat_map.add(10, {"link": [0.0] * (world_size - 1) + [2.0]})
    pixels = heat_map.draw()
    assert pixels.dtype == np.uint8 and pixels.shape[0] < 800
    assert ((pixels[:, :, 0] > 170) & (pixels[:, :, 1] < 40)).any()


def test_the_page_lists_every_metric() -> None:
    page = (Path(__file__).parents[2] / "docs" / "stragglers.md").read_text()
    own = [value for name, value in vars(names).items() if name.startswith("STRAGGLER_")]
    assert len(own) == 4 and all(f"`{value}`" in page for value in own)
