"""Every rule that ships: its fault, injected into the driver, is told; one that stays just below it is not."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from scaletrain.hardware import nvlink5
from scaletrain.hardware.judging import HealthFinding, Judge
from scaletrain.hardware.prober import Prober
from scaletrain.hardware.readings import Reading
from scaletrain.hardware.rules import load_rules
from tests.fake_nvml import FakeDriver, read_hung

RULES = load_rules()
GPUS = 2
BOOTED_LONG_AGO_S = 1e6
SWITCH = "nvidia-nvswitch2: SXid (PCI:0000:85:00.0): 12028, {}, Link 61"
LINK = "NVRM: Xid (PCI:0000:10:00): {} Link 03 (0x00086226 {})"
BIT_ERRORS = "149, NETIR_BER_EVENT Nonfatal XC0 i0"

# What changes before a poll; a value stays until another poll changes it, and "xid" and "log" are events.
Poll = dict[str, int | str]


@dataclass(frozen=True)
class Case:
    """Polls at whose last one, and not before, the rule is told, and others at which it never is."""

    fault: Sequence[Poll]
    below: Sequence[Poll]
    interval_s: float = 10.0


def held(poll: Poll, polls: int = 1) -> list[Poll]:
    return [poll] * polls


def flag(key: str, polls: int = 1) -> Case:
    """A fault that is there or not: below it is one poll fewer than it takes, or none."""
    return Case(held({key: 1}, polls), [*held({key: 1}, polls - 1), {key: 0}])


def above(key: str, fault: int, below: int, polls: int = 1, interval_s: float = 10.0) -> Case:
    return Case(held({key: fault}, polls), held({key: below}, polls), interval_s)


def slowed(bit: int, polls: int = 3) -> Case:
    # With bits that say nothing beside it; below it every other bit is set, and this one in too few polls.
    return Case(held({"1.reasons": bit | 0x115}, polls), [*held({"1.reasons": bit}, polls - 1), {"1.reasons": 0x115}])


def counted(key: str, times: int, step: int = 1) -> Case:
    """A counter that rises in so many polls; below it, in one fewer, and then rests."""
    rising: list[Poll] = [{key: step * (number + 1)} for number in range(times)]
    return Case(rising, [*rising[:-1], *held({}, 3)])


CASES: dict[str, Case] = (
    {
        "driver_silent": Case(
            held({"hang": "nvmlDeviceGetCount_v2"}, 3), [*held({"hang": "nvmlDeviceGetCount_v2"}, 2), {"hang": "none"}]
        ),
        "driver_failing": Case(
            held({"nvmlDeviceGetCount_v2": 999}, 3),
            [*held({"nvmlDeviceGetCount_v2": 999}, 2), {"nvmlDeviceGetCount_v2": 0}],
        ),
        "gpus_short": above("gpus", GPUS - 1, GPUS),
        "switch_fatal": Case([{"log": SWITCH.format("Fatal")}], [{"log": SWITCH.format("Non-fatal")}]),
        "switch_other": Case([{"log": SWITCH.format("Non-fatal")}], [{"log": SWITCH.format("Fatal")}]),
        "nvlink5_no_reset": Case([{"log": LINK.format(BIT_ERRORS, "0x3")}], [{"log": LINK.format(BIT_ERRORS, "0x4")}]),
        "gpu_lost": flag("1.lost"),
        "gpu_reset_required": flag("1.reset"),
        "gpu_failing": Case(
            held({"1.nvmlDeviceGetUUID": 999}, 3), [*held({"1.nvmlDeviceGetUUID": 999}, 2), {"1.nvmlDeviceGetUUID": 0}]
        ),
        "recovery_reset": above("1.recovery_action", 4, 0),
        "recovery_reboot": above("1.recovery_action", 2, 0),
        "recovery_other": above("1.recovery_action", 3, 0),
        # The driver's count is not 0 before: only what is added counts.
        "ecc_uncorrected": above("1.volatile_uncorrected", 8, 7, polls=2),
        "ecc_uncorrected_before": above("1.volatile_uncorrected", 1, 0),
        "sram_uncorrected": above("1.aggregate_sram_uncorrected", 5, 4),
        "sram_threshold": flag("1.sram_exceeded"),
        "ecc_corrected_rate": above("1.volatile_corrected", 10001, 10000, interval_s=1800),
        "ecc_corrected_ever": above("1.aggregate_corrected", 50_000_001, 50_000_000),
        "row_remap_pending": flag("1.rows_pending"),
        "row_remap_failed": flag("1.rows_failed"),
        "row_remap_failed_before": flag("1.rows_failed"),
        "pages_pending": flag("1.pages_pending"),
        "hw_slowdown": slowed(0x08),
        "hw_thermal": slowed(0x40),
        "power_brake": slowed(0x80),
        "sw_thermal": slowed(0x20),
        "temperature": above("1.temperature", 88, 87, polls=3),
        "memory_temperature": above("1.memory_temperature", 96, 95, polls=3),
        "nvlink_down": Case(held({"1.link2.active": 0}, 3), [*held({"1.link2.active": 0}, 2), {"1.link2.active": 1}]),
        "nvlink_missing": Case(held({"1.link2.active": 0}, 3), held({"*.link2.active": 0}, 3)),
        "nvlink_errors": counted("1.link3.recoveries", 3),
        "nvlink_errors_lasting": counted("1.link0.crc", 20),
        "pcie_replays": above("1.pcie_replays", 9, 8),
        "pcie_lanes": above("1.pcie_width", 8, 16, polls=3),
        "pcie_generation": Case(
            held({"1.pcie_generation": 4, "1.utilization": 50}, 3),
            held({"1.pcie_generation": 1, "1.utilization": 49}, 3),
        ),
        "leftover_memory": above("1.memory_mib", 513, 512, polls=6),
        "leftover_processes": flag("1.processes", polls=6),
        "xid_other": Case([{"xid": 12}], [{"xid": 63}]),
    }
    | {
        f"xid_{code}": Case([{"xid": code}], [{"xid": code + 200}])
        for code in {rule.code for rule in RULES.values()} - {None, *nvlink5.CODES}
    }
    | {
        # Of these the kernel's log is heard, where it may be read.
        f"xid_{code}": Case([{"log": LINK.format(f"{code}, ANY Fatal XC0 i0", "0x1")}], [{"xid": code}])
        for code in nvlink5.CODES
    }
)
BEFORE = {"ecc_uncorrected": {"1.volatile_uncorrected": 7}}


class Driven:
    """A fake driver with its prober and its kernel's log."""

    def __init__(self, folder: Path) -> None:
        self.fake = FakeDriver(folder, gpus=GPUS)
        self.log = folder / "kmsg"
        self.log.touch()
        self.prober = Prober(self.log, pause_s=0.0)
        self._record = 0

    def poll(self, poll: Poll) -> Reading:
        for key, value in poll.items():
            if key == "xid":
                self.fake.xid(1, int(value))
            elif key == "log":
                self._record += 1
                with self.log.open("a") as log:
                    log.write(f"6,{self._record},1,-;{value}\n")
            else:
                self.fake.set(key, value)
        hangs = str(poll.get("hang", "none")) != "none"
        reading = read_hung(self.prober) if hangs else self.prober.read(60.0)
        return replace(reading, uptime_s=BOOTED_LONG_AGO_S)


@pytest.fixture(scope="module")
def driven(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driven]:
    driven = Driven(tmp_path_factory.mktemp("driver"))
    with pytest.MonkeyPatch.context() as patch:
        driven.fake.install(patch)
        yield driven
        driven.prober.close()


# Told of what was there before the job, and not where it comes in it.
OF_BEFORE = {name for name, rule in RULES.items() if rule.when == "start"} | {"row_remap_failed_before"}


def judged(driven: Driven, name: str, polls: Sequence[Poll], interval_s: float) -> list[list[HealthFinding]]:
    """What is told at each poll, after two of a healthy driver where the job runs already."""
    driven.fake.heal()
    judge = Judge(RULES, "start" if RULES[name].when == "start" else "running", expected_gpus=GPUS)
    now_s = 0.0
    for healthy in [] if name in OF_BEFORE else [BEFORE.get(name, {}), {}]:
        assert judge.judge(driven.poll(healthy), now_s) == []
        now_s += interval_s
    told = []
    for poll in polls:
        told.append(judge.judge(driven.poll(poll), now_s))
        now_s += interval_s
    return told


def rules_of(findings: Sequence[HealthFinding]) -> set[str]:
    return {finding.rule for finding in findings}


def test_no_rule_lacks_its_pair() -> None:
    assert CASES.keys() == RULES.keys()


@pytest.mark.parametrize("name", CASES)
def test_the_fault_is_told_with_its_last_poll(driven: Driven, name: str) -> None:
    case = CASES[name]
    *before, last = judged(driven, name, case.fault, case.interval_s)
    assert name not in {rule for findings in before for rule in rules_of(findings)}
    (found,) = [finding for finding in last if finding.rule == name]
    assert (found.severity, found.action, found.source) == (
        RULES[name].severity,
        RULES[name].action,
        RULES[name].source,
    )
    assert name in found.text and RULES[name].remedy in found.text and RULES[name].condition() in found.text
    is_of_gpu = not name.startswith(("driver_", "gpus_", "switch_"))
    assert found.gpu_index == (1 if is_of_gpu else None)
    assert not is_of_gpu or found.gpu_uuid == "GPU-00000000-0000-0000-0000-000000000001"


@pytest.mark.parametrize("name", CASES)
def test_what_stays_just_below_is_not_told(driven: Driven, name: str) -> None:
    case = CASES[name]
    told = judged(driven, name, case.below, case.interval_s)
    assert name not in {rule for findings in told for rule in rules_of(findings)}
