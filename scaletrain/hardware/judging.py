"""Judges readings of GPUs by the rules: changes since the job began, over windows, each fault told once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from scaletrain.hardware import nvlink5
from scaletrain.hardware.readings import GpuReading, Reading, XidEvent
from scaletrain.hardware.repairs import RepairHistory
from scaletrain.hardware.rules import SEVERITIES, Repair, Rule, Severity, load_rules
from scaletrain.hardware.signals import SIGNALS
from scaletrain.hardware.watch import Watch

_YIELD_S = 60.0
_ESCALATES = ("reset_gpu", "reboot")


@dataclass(frozen=True)
class HealthFinding:
    """A rule that is broken.

    Attributes:
        rule: Its name.
        subject: What broke it: a GPU by its UUID, a switch by its place, a signal of the host, or the node.
        severity: What it means for a running job.
        action: What the node needs before it is used again.
        gpu_uuid: The GPU that broke it; None for the node or where it is not known.
        gpu_index: Its number with the driver, as last seen.
        bus_id: Its place, or that of a switch.
        value: What was measured.
        text: For people: what is wrong, the value, the rule and the remedy.
        source: Where the rule comes from.
        if_straggler: The severity where the GPU's rank holds the others up; None where that changes nothing.
    """

    rule: str
    subject: str
    severity: Severity
    action: Repair
    gpu_uuid: str | None
    gpu_index: int | None
    bus_id: str | None
    value: float
    text: str
    source: str
    if_straggler: Severity | None = None


@dataclass(frozen=True)
class _Subject:
    """What a rule is applied to: a GPU by its UUID, a switch by its place, or the node."""

    key: str
    index: int | None = None
    uuid: str | None = None
    bus_id: str | None = None

    def shown(self) -> str:
        if self.index is None:
            return self.bus_id or self.key
        known = ", ".join(word for word in (self.uuid, self.bus_id) if word)
        return f"GPU {self.index} ({known})" if known else f"GPU {self.index}"


_NODE = _Subject("the node")
# A rule that is newly broken, by what, with what measure, and what else is known.
_Broken = tuple[Rule, _Subject, float, str]


class Judge:
    """Judges one reading after another; what it has seen is its state.

    The first reading that tells a number is what its rise is measured from. A broken rule is told once; it must hold
    for three polls in a row before it can be told again.

    Args:
        rules: Those in force, by name.
        when: Whether this is before a job starts, or in it.
        expected_gpus: How many there should be; None where nobody counts on a number.
        history: Asks for repairs before; None where nobody keeps them.
    """

    def __init__(
        self,
        rules: Mapping[str, Rule],
        when: Literal["start", "running"] = "running",
        expected_gpus: int | None = None,
        history: RepairHistory | None = None,
    ) -> None:
        self._rules = [rule for rule in rules.values() if rule.when in ("always", when)]
        # A code whose rule is switched off is still not "any other".
        self._codes = {rule.code for rule in (*load_rules().values(), *rules.values()) if rule.signal == "xid"}
        self._expected_gpus, self._history = expected_gpus, history
        self._watches: dict[tuple[str, str], Watch] = {}
        self._active: dict[tuple[str, str], HealthFinding] = {}
        self._told_s: dict[tuple[str, str], float] = {}
        self._known: dict[str, _Subject] = {}
        self._words = nvlink5.KernelWords()

    @property
    def active(self) -> list[HealthFinding]:
        """All findings that still hold, the gravest first."""
        return sorted(self._active.values(), key=lambda one: -SEVERITIES.index(one.severity))

    @property
    def undecided(self) -> list[tuple[str, int | None]]:
        """Rules that the last poll broke, but not often enough yet to be told, each with the number of the GPU."""
        pending = [key for key, watch in self._watches.items() if watch.is_pending]
        return [(rule, self._known[key].index if key in self._known else None) for rule, key in pending]

    def judge(self, reading: Reading, now_s: float) -> list[HealthFinding]:
        """Judges one more reading.

        Args:
            reading: What ``Prober.read`` gave.
            now_s: When, in Unix seconds; never less than before.

        Returns:
            Findings that are new, the gravest first; those told before are in ``active``.
        """
        found: list[_Broken] = []
        for rule in self._rules if reading.driver != "unasked" else ():
            of_node = SIGNALS[rule.signal].of_node
            if of_node:
                value = of_node(reading, self._expected_gpus)
                found += self._poll(rule, _NODE, value, reading, now_s, reading.detail)
        if reading.driver == "ok":
            subjects = self._subjects(reading)
            whole = replace(reading, gpus=tuple(gpu for gpu, _ in subjects))
            for gpu, subject in subjects:
                for rule in self._rules:
                    of_gpu = SIGNALS[rule.signal].of_gpu
                    if of_gpu:
                        found += self._poll(rule, subject, of_gpu(gpu, whole), whole, now_s, gpu.detail)
        return self._tell([*found, *self._poll_events(reading, now_s)], now_s)

    def _tell(self, broken: Sequence[_Broken], now_s: float) -> list[HealthFinding]:
        for rule, subject, _, _ in broken:
            self._told_s[rule.name, subject.key] = now_s
        new = []
        for rule, subject, value, detail in broken:
            if not self._yields(rule, subject, now_s):
                finding = self._finding(rule, subject, value, detail, now_s)
                self._active[rule.name, subject.key] = finding
                new.append(finding)
        return sorted(new, key=lambda one: -SEVERITIES.index(one.severity))

    def _poll(
        self, rule: Rule, subject: _Subject, value: float | None, reading: Reading, now_s: float, detail: str
    ) -> list[_Broken]:
        """Adds a value to what is known of a rule and its subject; returns it where the rule is newly broken."""
        if value is None or (rule.after_boot_s and (reading.uptime_s or 0.0) < rule.after_boot_s):
            return []
        key = rule.name, subject.key
        watch = self._watches.setdefault(key, Watch(rule))
        measured = watch.poll(value, now_s)
        if not watch.is_broken:
            self._active.pop(key, None)
        return [] if measured is None else [(rule, subject, measured, detail)]

    def _poll_events(self, reading: Reading, now_s: float) -> list[_Broken]:
        """XIDs are judged as the number of them in a reading; no such event is a poll with none."""
        found: list[_Broken] = []
        heard = self._words.xids(reading)
        for rule in self._rules:
            signal = SIGNALS[rule.signal]
            if signal.of_gpu or signal.of_node:
                continue
            events: dict[_Subject, list[XidEvent]] = {}
            for event in heard:
                if self._is_about(rule, event):
                    events.setdefault(self._subject_of(event), []).append(event)
            known = {subject.key: subject for subject in events}
            quiet = [key for name, key in self._watches if name == rule.name and key not in known]
            for key in quiet:
                self._poll(rule, _Subject(key), 0.0, reading, now_s, "")
            for subject, told in events.items():
                codes = "; ".join(sorted({f"{event.code}{': ' if event.text else ''}{event.text}" for event in told}))
                found += self._poll(rule, subject, float(len(told)), reading, now_s, codes)
        return found

    def _is_about(self, rule: Rule, event: XidEvent) -> bool:
        if rule.signal != _signal_of(event):
            return False
        if rule.signal != "xid":
            return True
        return event.code == rule.code if rule.code is not None else event.code not in self._codes

    def _yields(self, rule: Rule, subject: _Subject, now_s: float) -> bool:
        times = [self._told_s.get((name, subject.key)) for name in rule.yields_to]
        return any(time_s is not None and now_s - time_s <= _YIELD_S for time_s in times)

    def _subjects(self, reading: Reading) -> list[tuple[GpuReading, _Subject]]:
        """Each GPU with what it is known by, and those that were listed before and are not any more."""
        named = {gpu.uuid: _Subject(gpu.uuid, gpu.index, gpu.uuid, gpu.bus_id) for gpu in reading.gpus if gpu.uuid}
        absent = [subject for key, subject in self._known.items() if key not in named]
        subjects = []
        for gpu in reading.gpus:
            if gpu.uuid:
                subjects.append((gpu, named[gpu.uuid]))
                continue
            # A GPU that is lost does not even tell what it is called: it is the one that is missed at its place.
            missed = [subject for subject in absent if subject.index == gpu.index]
            absent = [subject for subject in absent if subject not in missed[:1]]
            subjects.append((gpu, missed[0] if missed else _Subject(f"GPU {gpu.index}", gpu.index)))
        for subject in absent:
            assert subject.index is not None
            gone = GpuReading(subject.index, "lost", "not listed any more", subject.uuid, bus_id=subject.bus_id)
            subjects.append((gone, subject))
        self._known |= named
        return subjects

    def _subject_of(self, event: XidEvent) -> _Subject:
        if event.is_switch:
            return _Subject(f"switch {event.bus_id}", bus_id=event.bus_id)
        for subject in self._known.values():
            if event.bus_id is not None and subject.bus_id == event.bus_id:
                return subject
        return _Subject(f"GPU at {event.bus_id}", bus_id=event.bus_id)

    def _finding(self, rule: Rule, subject: _Subject, value: float, detail: str, now_s: float) -> HealthFinding:
        action, remedy = rule.action, rule.remedy
        if self._history is not None and subject.uuid is not None and action in _ESCALATES:
            if self._history.is_repeated(subject.uuid, now_s):
                action = "inspect"
                remedy = "have it looked at by the vendor: it asked for a repair in two boots before, and does again"
            self._history.record(subject.uuid, rule.name, rule.action, now_s)
        measured = f"{rule.signal}: {value:g}" + (f", {detail}" if detail else "")
        text = f"{subject.shown()}: {rule.title} ({measured}; rule {rule.name}: {rule.condition()}); {remedy}"
        return HealthFinding(
            rule.name,
            subject.key,
            rule.severity,
            action,
            subject.uuid,
            subject.index,
            subject.bus_id,
            value,
            text,
            rule.source,
            rule.if_straggler,
        )


def _signal_of(event: XidEvent) -> str:
    if event.is_switch:
        return "switch_fatal" if event.is_fatal else "switch_other"
    return "nvlink5_no_reset" if nvlink5.needs_no_reset(event.code, event.text) else "xid"


def worst(findings: Sequence[HealthFinding]) -> Severity | None:
    """The gravest severity among findings; None where there are none."""
    return max((one.severity for one in findings), key=SEVERITIES.index, default=None)
