"""What is remembered of one rule and what it is applied to: from which value it rose, and how often it was broken."""

from collections import deque

from scaletrain.hardware.rules import Rule

_RECOVERY_POLLS = 3  # that hold in a row before a fault that was told counts as over
_MOST_SAMPLES = 10_000


class Watch:
    """Applies a rule to the values of one signal.

    Args:
        rule: The rule.

    Attributes:
        is_broken: Whether it was told that the rule is broken, and it is not over.
        is_pending: Whether the last poll broke the rule, but that is not told yet.
    """

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._baseline: float | None = None
        self._last: float | None = None
        self._samples: deque[tuple[float, float]] = deque(maxlen=_MOST_SAMPLES)
        self._hits: deque[float] = deque(maxlen=rule.times)
        self._in_a_row, self._clean, self._since_s = 0, 0, 0.0
        self.is_broken = False
        self.is_pending = False

    def poll(self, value: float, now_s: float) -> float | None:
        """Adds a value.

        Args:
            value: What the signal is now.
            now_s: When, in seconds of any clock that does not go back.

        Returns:
            What was measured where the rule is broken from now on; else None.
        """
        measured = self._measure(value, now_s)
        if measured <= self._rule.above:
            self._hold(now_s)
            return None
        if self._in_a_row == 0:
            self._since_s = now_s
        self._in_a_row += 1
        self._clean = 0
        self._hits.append(now_s)
        is_often = self._is_often(now_s)
        if self._rule.measure == "rise" and (is_often or self.is_broken):
            self._baseline = value  # told: a further rise is another one
        is_new = is_often and not self.is_broken
        self.is_broken = self.is_broken or is_often
        self.is_pending = not self.is_broken
        return measured if is_new else None

    def _measure(self, value: float, now_s: float) -> float:
        # A counter that fell was set back, by a reset or a new driver: what it shows has come since.
        last = value if self._last is None else self._last
        self._baseline = value if self._baseline is None else min(self._baseline, value)
        self._last = value
        if self._rule.measure == "level":
            return value
        if self._rule.measure == "rise":
            return value - self._baseline
        if self._rule.measure == "step":
            return value - min(last, value)
        if value < last:
            self._samples.clear()
        self._samples.append((now_s, value))
        return self._rise_in_window(value, now_s)

    def _rise_in_window(self, value: float, now_s: float) -> float:
        window_s = self._rule.window_s
        while len(self._samples) > 2 and now_s - self._samples[1][0] >= window_s:
            self._samples.popleft()
        first_s, first = self._samples[0]
        # Where polls are rarer than the window, its share of what rose between two of them.
        share = window_s / (now_s - first_s) if now_s - first_s > window_s else 1.0
        return (value - first) * share

    def _hold(self, now_s: float) -> None:
        self._in_a_row = 0
        self.is_pending = False
        self._clean += 1
        if self._clean >= _RECOVERY_POLLS and not self._is_frequent(now_s):
            self.is_broken = False

    def _is_often(self, now_s: float) -> bool:
        wanted = self._rule.polls or (None if self._rule.times else 1)
        in_a_row = wanted is not None and self._in_a_row >= wanted and now_s - self._since_s >= self._rule.for_s
        return in_a_row or self._is_frequent(now_s)

    def _is_frequent(self, now_s: float) -> bool:
        times = self._rule.times
        return times is not None and len(self._hits) == times and now_s - self._hits[0] <= self._rule.within_s
