"""Looks at one node while a run trains: its GPUs and its host, each judged by the rules."""

import ctypes
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Protocol

from scaletrain.hardware.host_health import HostReader
from scaletrain.hardware.host_judging import HostJudge
from scaletrain.hardware.judging import HealthFinding, Judge
from scaletrain.hardware.kernel_log import KernelLog, open_kernel_log
from scaletrain.hardware.prober import Prober
from scaletrain.hardware.readings import GpuReading, Reading
from scaletrain.hardware.rules import SEVERITIES, Rule, Severity
from scaletrain.hardware.visible import local_index, only_visible
from scaletrain.launch.verdicts import Ending, Verdict

_ANSWER_S = 15.0  # as long as Prober calls plenty for a sound driver
_MOST_TOLD = 100
_KEEPS_NODE = "restart_app"
_ENDS = ("drain", "abort")
_LIBRARY = "libnvidia-ml.so.1"
_GIB = 2**30


@dataclass(frozen=True)
class Told:
    """A finding, once it was told.

    Attributes:
        number: Counts the findings of its node in this start, from 1.
        host: The node.
        since_s: When it was found, in Unix seconds.
        severity: What it means for the run.
        action: What the node needs before it is used again.
        rule: Name of the rule that was broken.
        text: For people.
        rank: Of the run, whose GPU it is; None for the node.
        gpu_index: Number that the driver gives the GPU.
        gpu_uuid: What the GPU is known by for ever.
    """

    number: int
    host: str
    since_s: float
    severity: Severity
    action: str
    rule: str
    text: str
    rank: int | None = None
    gpu_index: int | None = None
    gpu_uuid: str | None = None


@dataclass(frozen=True)
class NodeHealth:
    """A node at one moment, as plain data that passes through a file as JSON.

    Attributes:
        host: Its name.
        rank: The first rank on it, which looks after it.
        time_s: When the look began, in Unix seconds.
        driver: Whether the driver of the GPUs answers; see ``readings.DriverState``.
        gpus: What they tell, by the rank that computes on each, units in the names.
        signals: Numbers that the host tells, as ``HostReading.signals`` names them.
        current: Findings that hold, and those that end the run, the gravest first.
        told: All findings of this start, up to a hundred of them, oldest first.
    """

    host: str
    rank: int
    time_s: float
    driver: str = "absent"
    gpus: Mapping[int, Mapping[str, float | str]] = field(default_factory=dict)
    signals: Mapping[str, float] = field(default_factory=dict)
    current: Sequence[Told] = ()
    told: Sequence[Told] = ()

    def to_json(self) -> str:
        """JSON that ``from_json`` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "NodeHealth":
        """Reads what ``to_json`` wrote.

        Raises:
            ValueError: It is not JSON.
            TypeError: It is another object.
        """
        content = json.loads(text)
        content["gpus"] = {int(rank): values for rank, values in content["gpus"].items()}
        for key in ("current", "told"):
            content[key] = tuple(Told(**one) for one in content[key])
        return cls(**content)


class GpuSource(Protocol):
    """What asks the driver; ``Prober`` is one."""

    def read(self, timeout_s: float) -> Reading:
        """Asks for everything, and waits no longer than told."""

    def close(self) -> None:
        """Lets go of the driver."""


class NodeSampler:
    """Looks at a node again and again, always on the same thread.

    Args:
        host: The node's name.
        first_rank: The first rank on it.
        judge: Judges the GPUs, and remembers.
        host_judge: Judges the host, and remembers.
        gpus: Asks the driver; None where there is none.
        reader: Reads the host.
        environ: Says which of the GPUs are this job's.
        kernel_log: What ``reader`` reads of it, to be closed; None where it may not be read.
    """

    def __init__(
        self,
        host: str,
        first_rank: int,
        judge: Judge,
        host_judge: HostJudge,
        gpus: GpuSource | None,
        reader: HostReader,
        environ: Mapping[str, str],
        kernel_log: KernelLog | None = None,
    ) -> None:
        self._host, self._first_rank = host, first_rank
        self._judge, self._host_judge = judge, host_judge
        self._gpus, self._reader, self._environ, self._kernel_log = gpus, reader, environ, kernel_log
        self._told: dict[tuple[str, str], Told] = {}
        self._all: list[Told] = []
        self._ending: list[Told] = []
        self._last_s = 0.0

    def sample(self, slow_ranks: frozenset[int] = frozenset()) -> NodeHealth:
        """Looks once, and judges.

        Args:
            slow_ranks: Ranks of the run that are slow to compute: what slows their GPUs down may be graver.

        Returns:
            The node as it is now.
        """
        now_s = self._last_s = max(self._last_s, time.time())  # rules with windows need a clock that does not go back
        reading = self._read_gpus()
        signals = self._reader.read().signals()
        for finding in (*self._judge.judge(reading, now_s), *self._host_judge.judge_signals(signals, now_s)):
            self._keep(finding, self._tell(finding, now_s))
        active = (*self._judge.active, *self._host_judge.active)
        for finding in active:
            told = self._told[_key(finding)]
            if told.rank in slow_ranks and _is_graver(finding.if_straggler, told.severity):
                self._keep(finding, self._tell_straggler(finding, now_s))
        holds = [self._told[_key(finding)] for finding in active]
        # An XID is told once, and is over soon; what it asks for is not.
        current = sorted({*holds, *self._ending}, key=lambda one: (-SEVERITIES.index(one.severity), one.number))
        return NodeHealth(
            self._host,
            self._first_rank,
            now_s,
            reading.driver,
            {rank: _shown(gpu) for gpu in reading.gpus if (rank := self._rank_of(gpu.index, gpu.uuid)) is not None},
            signals,
            current,
            self._all[-_MOST_TOLD:],
        )

    @property
    def has_gpus(self) -> bool:
        """Whether there is a driver to ask."""
        return self._gpus is not None

    def close(self) -> None:
        """Lets go of the driver and the kernel's log."""
        if self._gpus is not None:
            self._gpus.close()
        if self._kernel_log is not None:
            self._kernel_log.close()

    def _read_gpus(self) -> Reading:
        if self._gpus is None:
            return Reading("absent")
        return only_visible(self._gpus.read(_ANSWER_S), self._environ)

    def _rank_of(self, index: int | None, uuid: str | None) -> int | None:
        place = local_index(index, uuid, self._environ)
        return None if place is None else self._first_rank + place

    def _keep(self, finding: HealthFinding, told: Told) -> None:
        self._told[_key(finding)] = told
        self._all.append(told)
        if told.severity in _ENDS:
            self._ending.append(told)

    def _tell_straggler(self, finding: HealthFinding, now_s: float) -> Told:
        """The same finding as it weighs where the GPU's rank holds the others up."""
        assert finding.if_straggler is not None  # was looked at before
        told = self._tell(replace(finding, severity=finding.if_straggler), now_s)
        action = "inspect" if told.action == "none" else told.action
        return replace(told, action=action, text=f"{told.text}; rank {told.rank} holds the others up by it")

    def _tell(self, finding: HealthFinding, now_s: float) -> Told:
        return Told(
            len(self._all) + 1,
            self._host,
            now_s,
            finding.severity,
            finding.action,
            finding.rule,
            finding.text,
            self._rank_of(finding.gpu_index, finding.gpu_uuid),
            finding.gpu_index,
            finding.gpu_uuid,
        )


def open_sampler(
    host: str,
    first_rank: int,
    rules: Mapping[str, Rule],
    judge: Judge,
    host_judge: HostJudge,
    folders: Mapping[str, Path],
    environ: Mapping[str, str],
) -> NodeSampler:
    """Makes what looks at this node; to be called on the thread that will ask it.

    Args:
        host: The node's name.
        first_rank: The first rank on it.
        rules: Those of GPUs in force.
        judge: Judges the GPUs, and remembers.
        host_judge: Judges the host, and remembers.
        folders: Folders whose room is told, by what they are for.
        environ: Says which of the GPUs are this job's.

    Returns:
        The sampler. It asks no driver where there is none, or no rule.
    """
    hidden = environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1")  # this job computes on no GPU
    gpus = Prober() if rules and not hidden and is_driver_there() else None
    log = open_kernel_log()
    reader = HostReader(folders, kernel_log=None if log is None else log.lines)
    return NodeSampler(host, first_rank, judge, host_judge, gpus, reader, environ, log)


def is_driver_there() -> bool:
    """Whether this machine has NVIDIA's driver; it is not asked anything."""
    try:
        ctypes.CDLL(_LIBRARY)  # as pynvml looks for it
    except OSError:
        return False
    return True


def ending_of(told: Sequence[Told], severity: Severity) -> Ending | None:
    """How a run ends by the findings of a severity.

    Args:
        told: Findings.
        severity: ``drain`` or ``abort``.

    Returns:
        The verdict, with the nodes that the run should go on without; None where no finding is so grave. Where only the
        program has to be started again, the node is not to blame.
    """
    meant = [one for one in told if one.severity == severity]
    if not meant:
        return None
    reason = "; ".join(dict.fromkeys(f"{one.host}: {one.text}" for one in meant))
    hosts = sorted({one.host for one in meant if one.action != _KEEPS_NODE})
    return Ending(Verdict.SICK_NODE, reason, tuple(hosts))


def _is_graver(severity: Severity | None, other: Severity) -> bool:
    return severity is not None and SEVERITIES.index(severity) > SEVERITIES.index(other)


def _key(finding: HealthFinding) -> tuple[str, str]:
    return finding.rule, finding.subject


def _shown(gpu: GpuReading) -> dict[str, float | str]:
    """What is worth looking at of a GPU; what it does not tell is left out."""
    values = {
        "uuid": gpu.uuid,
        "bus_id": gpu.bus_id,
        "name": gpu.name,
        "state": gpu.state,
        "temp_c": gpu.temperature_c,
        "memory_temp_c": gpu.memory_temperature_c,
        "power_w": gpu.power_w,
        "clock_mhz": gpu.clock_mhz,
        "utilization_percent": gpu.utilization_percent,
        "memory_used_gib": None if gpu.memory_used_bytes is None else gpu.memory_used_bytes / _GIB,
        "ecc_corrected": gpu.ecc_volatile.corrected,
        "ecc_uncorrected": gpu.ecc_volatile.uncorrected,
        "pcie_replays": gpu.pcie_replays,
    }
    return {name: value for name, value in values.items() if value is not None}
