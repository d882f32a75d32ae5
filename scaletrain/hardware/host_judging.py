"""Judges readings of a host by the rules, as judging.py does those of GPUs; each device and folder by itself."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal

from scaletrain.hardware.host_health import HostReading
from scaletrain.hardware.judging import HealthFinding
from scaletrain.hardware.readings import uptime_s
from scaletrain.hardware.rules import SEVERITIES, Rule
from scaletrain.hardware.watch import Watch

_YIELD_S = 60.0


class HostJudge:
    """Judges one reading after another; what it has seen is its state.

    Args:
        rules: Those in force, by name, from ``load_host_rules``.
        when: Whether this is before a job starts, or in it.
    """

    def __init__(self, rules: Mapping[str, Rule], when: Literal["start", "running"] = "running") -> None:
        self._rules = [rule for rule in rules.values() if rule.when in ("always", when)]
        self._watches: dict[tuple[str, str], Watch] = {}
        self._active: dict[tuple[str, str], HealthFinding] = {}
        self._told_s: dict[str, float] = {}

    @property
    def active(self) -> list[HealthFinding]:
        """All findings that still hold, the gravest first."""
        return _gravest_first(list(self._active.values()))

    @property
    def undecided(self) -> list[tuple[str, str]]:
        """Rules that the last poll broke, but not often enough yet to be told, each with its signal."""
        return [key for key, watch in self._watches.items() if watch.is_pending]

    def judges(self, name: str) -> bool:
        """Whether any rule is about a signal."""
        return any(fnmatchcase(name, rule.signal) for rule in self._rules)

    def judge(self, reading: HostReading, now_s: float) -> list[HealthFinding]:
        """Judges one more reading.

        Args:
            reading: What ``HostReader.read`` gave.
            now_s: When, in seconds that do not go back, such as those since boot.

        Returns:
            Findings that are new, the gravest first; those told before are in ``active``.
        """
        return self.judge_signals(reading.signals(), now_s)

    def judge_signals(self, signals: Mapping[str, float], now_s: float) -> list[HealthFinding]:
        """Judges signals by their names; one that is not told now is not judged.

        Args:
            signals: What ``HostReading.signals`` gave.
            now_s: As for ``judge``.

        Returns:
            As ``judge``.
        """
        broken: list[tuple[Rule, str, float]] = []
        up_s = uptime_s() or 0.0
        for rule in self._rules:
            for name in signals if up_s >= rule.after_boot_s else ():
                if fnmatchcase(name, rule.signal):
                    watch = self._watches.setdefault((rule.name, name), Watch(rule))
                    measured = watch.poll(signals[name], now_s)
                    if measured is not None:
                        broken.append((rule, name, measured))
                    if not watch.is_broken:
                        self._active.pop((rule.name, name), None)
        for rule, _, _ in broken:
            self._told_s[rule.name] = now_s
        new = []
        for rule, name, measured in broken:
            if not self._yields(rule, now_s):
                self._active[rule.name, name] = finding = _finding(rule, name, measured)
                new.append(finding)
        return _gravest_first(new)

    def _yields(self, rule: Rule, now_s: float) -> bool:
        times = [self._told_s.get(name) for name in rule.yields_to]
        return any(time_s is not None and now_s - time_s <= _YIELD_S for time_s in times)


def _finding(rule: Rule, name: str, measured: float) -> HealthFinding:
    text = f"{name}: {rule.title} ({measured:g}; rule {rule.name}: {rule.condition()}); {rule.remedy}"
    return HealthFinding(rule.name, name, rule.severity, rule.action, None, None, None, measured, text, rule.source)


def _gravest_first(findings: Sequence[HealthFinding]) -> list[HealthFinding]:
    return sorted(findings, key=lambda one: -SEVERITIES.index(one.severity))
