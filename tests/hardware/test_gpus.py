"""The check of a node's GPUs before a job, against a driver that was made for the test."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scaletrain.hardware.findings import Finding
from scaletrain.hardware.gpus import check_gpus
from scaletrain.hardware.prober import Prober
from scaletrain.hardware.readings import Reading
from scaletrain.hardware.rules import load_rules
from tests.fake_nvml import FakeDriver

LONG_S = 100.0


@pytest.fixture
def prober(tmp_path: Path) -> Iterator[Prober]:
    prober = Prober(tmp_path / "no kernel log", pause_s=0.0)
    yield prober
    prober.close()


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    fake = FakeDriver(tmp_path, gpus=2)
    fake.install(monkeypatch)
    return fake


def ask(
    prober: Prober,
    expected: int | None = 2,
    rules: Path | None = None,
    limit_s: float = LONG_S,
    settle_s: float = LONG_S,
    **environ: str,
) -> dict[str, Finding]:
    found, _ = check_gpus(prober, load_rules(rules), environ, expected, time.monotonic() + limit_s, settle_s)
    return {one.check: one for one in found}


def test_healthy_gpus_pass(prober: Prober, fake: FakeDriver) -> None:
    found = ask(prober)
    assert {name: one.status for name, one in found.items()} == {"gpus": "ok", "gpu 0": "ok", "gpu 1": "ok"}


def test_each_fault_is_named_and_the_sound_gpu_stays_sound(prober: Prober, fake: FakeDriver) -> None:
    fake.set("gpus", 7)
    fake.set("0.lost", 1)
    fake.set("1.rows_pending", 1)
    fake.set("2.volatile_uncorrected", 3)
    fake.set("3.nvmlDeviceGetTotalEccErrors", 4)  # no permission
    fake.set("4.nvmlDeviceGetMemoryInfo_v2", 3)  # shares the memory of the host
    fake.set("4.nvmlDeviceGetMemoryInfo", 3)
    fake.set("6.mig", 1)
    for call in ("GetRemappedRows", "GetUtilizationRates", "GetComputeRunningProcesses_v3", "GetFieldValues"):
        fake.set(f"6.nvmlDevice{call}", 3)
    found = ask(prober, 8)
    assert {name: one.status for name, one in found.items()} == {
        "gpus_short": "fail",
        "gpu 0 gpu_lost": "fail",
        "gpu 1 row_remap_pending": "fail",
        "gpu 2 ecc_uncorrected_before": "warn",
        "gpu 3": "ok",
        "gpu 3 not told": "unknown",
        "gpu 4": "ok",
        "gpu 5": "ok",
        "gpu 6": "ok",
        "gpu 6 not told": "unknown",
    }
    assert "reboot" in found["gpu 0 gpu_lost"].detail
    assert "ecc_uncorrected" in found["gpu 3 not told"].detail


def test_nobody_needs_to_count_on_a_number(prober: Prober, fake: FakeDriver) -> None:
    assert ask(prober, None)["gpus"] == Finding("gpus", "ok", "2")


def test_more_than_are_wanted_are_no_fault(prober: Prober, fake: FakeDriver) -> None:
    assert ask(prober, 1)["gpus"] == Finding("gpus", "ok", "2, at least 1 wanted")


class Healing(Prober):
    """Has the fault pass once it was seen."""

    def __init__(self, fake: FakeDriver) -> None:
        super().__init__()
        self._fake = fake

    def read(self, timeout_s: float) -> Reading:
        reading = super().read(timeout_s)
        self._fake.heal()
        return reading


def test_a_fault_that_passes_is_none(fake: FakeDriver) -> None:
    fake.set("0.pcie_width", 8)
    prober = Healing(fake)
    found = ask(prober)
    prober.close()
    assert {name: one.status for name, one in found.items()} == {"gpus": "ok", "gpu 0": "ok", "gpu 1": "ok"}


def test_what_is_not_sure_when_the_time_is_over_is_a_warning(prober: Prober, fake: FakeDriver) -> None:
    """A process that was ended may take a while to give its memory back: 50 s, by the rule."""
    fake.set("1.processes", 1)
    found = ask(prober, settle_s=0.0)
    assert {name: one.status for name, one in found.items()} == {
        "gpus": "ok",
        "gpu 0": "ok",
        "gpu 1 leftover_processes": "warn",
    }
    assert "not long or often enough" in found["gpu 1 leftover_processes"].detail


def test_gpus_of_other_jobs_are_not_judged(prober: Prober, fake: FakeDriver) -> None:
    fake.set("gpus", 4)
    fake.set("0.lost", 1)
    assert ask(prober, CUDA_VISIBLE_DEVICES="2,3").keys() == {"gpus", "gpu 2", "gpu 3"}
    uuid = "GPU-00000000-0000-0000-0000-000000000001"
    found = ask(prober, 1, CUDA_VISIBLE_DEVICES=uuid)
    assert found.keys() == {"gpus", "gpu 1"}
    assert found["gpus"].detail == "1 of 1; 3 more are not in CUDA_VISIBLE_DEVICES, and were not looked at"


def test_a_users_rules_are_heeded(prober: Prober, fake: FakeDriver, tmp_path: Path) -> None:
    fake.set("0.rows_pending", 1)
    (tmp_path / "rules.yaml").write_text("row_remap_pending: {severity: warn}\n")
    assert ask(prober, rules=tmp_path / "rules.yaml")["gpu 0 row_remap_pending"].status == "warn"


def test_a_driver_that_is_not_loaded_fails(prober: Prober, fake: FakeDriver) -> None:
    fake.set("init", 9)
    assert "reboot" in ask(prober)["driver_failing"].detail


def test_a_machine_without_a_driver_is_unknown(prober: Prober, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_text("hides that of a machine which has one")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    found = ask(prober)
    assert (found["nvml"].status, "not available" in found["nvml"].detail) == ("unknown", True)


def test_a_call_that_never_returns_is_a_finding_when_the_time_is_over(prober: Prober, fake: FakeDriver) -> None:
    ask(prober)  # the process that asks is there already: a busy machine takes long to start it
    fake.set("1.hang", "nvmlDeviceGetRemappedRows")
    (found,) = ask(prober, limit_s=1.0).values()
    assert (found.check, found.status) == ("nvml", "fail")
    assert "when asked for remapped rows and retired pages of GPU 1; reboot the node" in found.detail


@pytest.mark.thorough
def test_a_call_that_never_returns_breaks_a_rule(prober: Prober, fake: FakeDriver) -> None:
    fake.set("1.hang", "nvmlDeviceGetRemappedRows")
    (found,) = ask(prober).values()
    assert (found.check, found.status) == ("driver_silent", "fail")
    assert "remapped rows and retired pages of GPU 1" in found.detail
