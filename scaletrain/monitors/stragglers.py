"""Which ranks hold the others up, and by what: judged from times that all ranks have measured.

What a rank spends itself is compared, never how long it waits for others: a step takes all ranks equally long.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from operator import ge
from typing import Literal, get_args

Cause = Literal["compute", "data", "link"]
CAUSES: tuple[Cause, ...] = get_args(Cause)

_LEAST_SCORE = 3.5
"""Source: Iglewicz and Hoaglin, "How to Detect and Handle Outliers", 1993: the cut of the modified z-score."""
_PER_DEVIATION = 1.4826
"""Standard deviation of a normal distribution by its median absolute deviation."""
_WINDOWS = 2
_PARTS = 5
"""Of a window. Chosen on recorded steps of equal ranks whose cores others used: with three or four some were named."""
_PAST_WINDOWS = 20
_PAST_TELLS = 3
_LEAST_TREND = 0.6
"""Kendall's tau, from which on a past is a trend. Chosen on simulated ranks: those that get slower are named early, and
equal ones whose noise lasts for several windows hardly more often than if no trend were looked for."""
_RESOLUTION = 0.01
"""Noise that is always there, as a share: ranks that were equal by chance must not make the next one an outlier."""
_LINK_LIMIT = 2.0
_LEAST_LINK_S = 0.5e-3
"""A link is slow where a round trip takes three times as long as others', and a millisecond longer; chosen, since on
busy cores the fastest of a few round trips was seen to take up to 2.6 times as long."""


@dataclass(frozen=True)
class RankTimes:
    """What one rank has measured in a window.

    Attributes:
        step_s: Duration of a step, on average, in seconds.
        data_s: How long a step waited for its data, on average.
        compute_s: CPU or device time of a typical step's computation; NaN where waiting would be in it.
        compute_parts_s: The same in each part of the window, see ``parts_of``.
        link_s: The fastest of a few messages to a neighbour and back; see ``link_times``.
    """

    step_s: float
    data_s: float
    compute_s: float
    compute_parts_s: Sequence[float]
    link_s: float


@dataclass(frozen=True)
class Straggler:
    """A rank, or all ranks of a node, that hold the others up.

    Attributes:
        cause: What is slow.
        host: The node.
        ranks: Which ranks of it.
        is_node: Whether these are all of the node's, which stand out together.
        seconds: What the slowest of them takes: of compute and data for a step, of a link for a round trip.
        group_seconds: What others take.
        share: The difference: of compute and link as a share of ``group_seconds``, of data as a share of a step.
        past_share: The share that it had before, the median of up to 20 windows; None where too few are known, and
            of a node where one of its ranks was named before.
        score: The share in units of the noise: the larger one of that among the ranks, and of its own over windows.
    """

    cause: Cause
    host: str
    ranks: tuple[int, ...]
    is_node: bool
    seconds: float
    group_seconds: float
    share: float
    past_share: float | None
    score: float

    def describe(self) -> str:
        """For people: who, what, and by how much."""
        ranks = f"rank{'s' if len(self.ranks) > 1 else ''} {', '.join(map(str, self.ranks))}"
        who = f"all ranks of {self.host} ({ranks})" if self.is_node else f"{ranks} on {self.host}"
        taken = f"{_shown(self.seconds)}, others {_shown(self.group_seconds)}"
        what = {
            "compute": f"slow to compute, by {self.share:.0%}: a step takes {taken}",
            "data": f"slow to get data, by {self.share:.0%} of a step: a step waits {taken}",
            "link": f"behind a slow link: a message and its answer take {taken}",
        }[self.cause]
        past = "" if self.past_share is None else f" (before: by {max(0.0, self.past_share):.0%})"
        return f"{who}: {what}{past}"


@dataclass
class _Suspicion:
    """What is held against one rank for one cause."""

    slow_windows: int = 0
    calm_windows: int = 0
    is_named: bool = False
    past: deque[float] = field(default_factory=lambda: deque(maxlen=_PAST_WINDOWS))


@dataclass(frozen=True)
class _Group:
    """All ranks in one window, for one cause.

    Attributes:
        values: By rank, in seconds.
        usual: What is usual among them.
        shares: By rank, how much more than usual; of compute none where that did not last for all of the window.
        noise: Among the shares.
        limit: The share from which on a rank is slow.
        calm: By rank, whether it was far from that, also for a part of the window.
    """

    values: Sequence[float]
    usual: float
    shares: Sequence[float]
    noise: float
    limit: float
    calm: Sequence[bool]


class StragglerJudge:
    """Judges one window after another; what it has seen is its state.

    A rank is named when it was slow in two windows in a row, and not again before it was not for two windows.

    Args:
        hosts: The node of each rank.
        slowdown: From which share on a rank is slow in compute (of what others take) or data (of a step).
    """

    def __init__(self, hosts: Sequence[str], slowdown: float) -> None:
        self._hosts, self._slowdown = hosts, slowdown
        self._held = {cause: [_Suspicion() for _ in hosts] for cause in CAUSES}
        self._groups: dict[Cause, _Group] = {}

    def judge(self, window: Sequence[RankTimes]) -> list[Straggler]:
        """Takes in what all ranks have measured.

        Args:
            window: By rank.

        Returns:
            Those that are named from now on.
        """
        self._groups = _compare(window, self._slowdown)
        return [straggler for cause in self._groups for straggler in self._judge(cause)]

    @property
    def severities(self) -> Mapping[Cause, Sequence[float]]:
        """By cause and rank, how slow the last window was: 0 is usual, from 1 on it counts as slow."""
        return {cause: [share / group.limit for share in group.shares] for cause, group in self._groups.items()}

    @property
    def worst_shares(self) -> Mapping[Cause, float]:
        """By cause, how much slower than usual the slowest rank was in the last window."""
        return {cause: max(group.shares) for cause, group in self._groups.items()}

    def named(self, cause: Cause) -> frozenset[int]:
        """The ranks that are slow for a cause."""
        return frozenset(rank for rank, held in enumerate(self._held[cause]) if held.is_named)

    @property
    def slow(self) -> frozenset[int]:
        """The ranks that are slow for any cause."""
        return frozenset().union(*map(self.named, CAUSES))

    def _judge(self, cause: Cause) -> list[Straggler]:
        group = self._groups[cause]
        named_before = self.named(cause)
        fresh = [rank for rank in range(len(self._hosts)) if self._is_news(cause, rank)]
        found: list[Straggler] = []
        for host in dict.fromkeys(self._hosts[rank] for rank in fresh):
            ranks = tuple(rank for rank, other in enumerate(self._hosts) if other == host)
            # Half the limit: that the others of a slow node lie just below it must not hide that it is the node.
            is_node = 1 < len(ranks) < len(self._hosts) and all(group.shares[rank] >= group.limit / 2 for rank in ranks)
            if is_node:
                for rank in ranks:
                    self._held[cause][rank].is_named = True
            for some in [ranks] if is_node else [(rank,) for rank in ranks if rank in fresh]:
                # The past of one that was named already is its slowness.
                found.append(self._tell(cause, host, some, is_node, named_before.isdisjoint(some)))
        for held, share in zip(self._held[cause], group.shares, strict=True):
            held.past.append(share)
        return found

    def _is_news(self, cause: Cause, rank: int) -> bool:
        held, limit, share = self._held[cause][rank], self._groups[cause].limit, self._groups[cause].shares[rank]
        is_slow = share >= limit and self._score(cause, rank) >= _LEAST_SCORE
        held.slow_windows = held.slow_windows + 1 if is_slow else 0
        # Whatever its score: what was slow for long has become its own noise.
        held.calm_windows = held.calm_windows + 1 if self._groups[cause].calm[rank] else 0
        if held.calm_windows >= _WINDOWS:
            held.is_named = False
        if held.is_named or held.slow_windows < _WINDOWS:
            return False
        held.is_named = True
        return True

    def _score(self, cause: Cause, rank: int) -> float:
        past = self._held[cause][rank].past
        own_noise = _own_noise(past) if len(past) >= _PAST_TELLS else 0.0
        return self._groups[cause].shares[rank] / max(self._groups[cause].noise, own_noise, _RESOLUTION)

    def _tell(self, cause: Cause, host: str, ranks: tuple[int, ...], is_node: bool, has_past: bool) -> Straggler:
        group = self._groups[cause]
        worst = max(ranks, key=lambda rank: group.shares[rank])
        before = list(self._held[cause][worst].past)[: 1 - _WINDOWS]  # it was slow in the last one already
        past_share = lower_median(before) if has_past and len(before) >= _PAST_TELLS else None
        share, score = group.shares[worst], self._score(cause, worst)
        return Straggler(cause, host, ranks, is_node, group.values[worst], group.usual, share, past_share, score)


def link_times(round_trips_s: Sequence[float], stride: int) -> list[float]:
    """How slow the link of each rank is: by the better one of its two neighbours, as it shows with both of them.

    Args:
        round_trips_s: Of each rank to the one ``stride`` further on, in a ring.
        stride: Between neighbours.

    Returns:
        Seconds by rank.
    """
    return [min(own, round_trips_s[rank - stride]) for rank, own in enumerate(round_trips_s)]


def parts_of(steps: Sequence[float]) -> list[Sequence[float]]:
    """Parts a window's steps into five of about the same length: what disturbs a rank comes and goes, slowness stays.

    Args:
        steps: A number for each.

    Returns:
        The parts; with less than five steps, as many as there are steps.
    """
    count = min(_PARTS, len(steps))
    return [steps[len(steps) * part // count : len(steps) * (part + 1) // count] for part in range(count)]


def lower_median(values: Sequence[float]) -> float:
    """The middle one of some numbers; of an even number of them the lower one of two.

    So one of two ranks, or half of all, can be slower than what is usual.
    """
    return sorted(values)[(len(values) - 1) // 2]


def _deviation(values: Sequence[float]) -> float:
    """Standard deviation, as told by the median absolute deviation: a few outliers do not change it."""
    middle = lower_median(values)
    return _PER_DEVIATION * lower_median([abs(value - middle) for value in values])


def _own_noise(past: Sequence[float]) -> float:
    """Standard deviation of a rank's shares over windows, without the trend of one that gets slower bit by bit.

    Sources: Kendall, "A New Measure of Rank Correlation", 1938, for the trend; von Neumann and others, "The Mean Square
    Successive Difference", 1941, for the noise beside it: a difference has twice the variance.
    """
    pairs = [(later > earlier) - (later < earlier) for earlier, later in combinations(past, 2)]
    if sum(pairs) < _LEAST_TREND * len(pairs):
        return _deviation(past)
    steps = [abs(later - earlier) for earlier, later in pairwise(past)]
    return min(_deviation(past), _PER_DEVIATION * lower_median(steps) / math.sqrt(2))


def _compare(window: Sequence[RankTimes], slowdown: float) -> dict[Cause, _Group]:
    """Compares the ranks by each cause that all of them have measured."""
    step_s = lower_median([times.step_s for times in window])
    compute, data = [times.compute_s for times in window], [times.data_s for times in window]
    link = [times.link_s for times in window]
    measured: dict[Cause, tuple[Sequence[float], float, float]] = {
        "compute": (compute, lower_median(compute), slowdown),
        "data": (data, step_s, slowdown),
        "link": (link, max(lower_median(link), _LEAST_LINK_S), _LINK_LIMIT),
    }
    groups: dict[Cause, _Group] = {}
    for cause, (values, unit, limit) in measured.items():
        if all(map(math.isfinite, values)) and unit > 0:
            usual = lower_median(values)
            shares = [(value - usual) / unit for value in values]
            calm = [share < limit / 2 for share in shares]
            if cause == "compute":
                lasts = _are_slow_throughout(window, limit / 2)
                shares = [share if is_slow else min(share, 0.0) for share, is_slow in zip(shares, lasts, strict=True)]
            groups[cause] = _Group(values, usual, shares, _deviation(shares), limit, calm)
    return groups


def _are_slow_throughout(window: Sequence[RankTimes], least: float) -> list[bool]:
    """By rank, whether it computed slower than usual by at least a share in each part of the window."""
    parts = zip(*(times.compute_parts_s for times in window), strict=True)
    limits = [(1 + least) * lower_median(values) for values in parts]
    return [all(map(ge, times.compute_parts_s, limits)) for times in window]


def _shown(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
