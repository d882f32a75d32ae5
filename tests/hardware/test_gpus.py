"""The check of a node's GPUs as a process, against a driver that was made for the test."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scaletrain.hardware.bounded import BoundedCheck
from scaletrain.hardware.findings import Finding
from tests.fake_nvml import FakeDriver

HUNG = "asks for remapped rows and retired pages of GPU 1\n"


def ask(fake: FakeDriver, expected: int = 2, *arguments: str, **environment: str) -> dict[str, Finding]:
    command = [sys.executable, "-m", "scaletrain.hardware.gpus", str(expected), *arguments]
    variables = os.environ | fake.environment | environment
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return {one["check"]: Finding(**one) for one in json.loads(done.stdout)}


def test_healthy_gpus_pass(tmp_path: Path) -> None:
    found = ask(FakeDriver(tmp_path, gpus=2))
    assert {name: one.status for name, one in found.items()} == {"gpus": "ok", "gpu 0": "ok", "gpu 1": "ok"}


def test_each_fault_is_named_and_the_sound_gpu_stays_sound(tmp_path: Path) -> None:
    fake = FakeDriver(tmp_path, gpus=7)
    fake.set("0.lost", 1)
    fake.set("1.rows_pending", 1)
    fake.set("2.volatile_uncorrected", 3)
    fake.set("3.nvmlDeviceGetTotalEccErrors", 4)  # no permission
    fake.set("4.nvmlDeviceGetMemoryInfo_v2", 3)  # shares the memory of the host
    fake.set("4.nvmlDeviceGetMemoryInfo", 3)
    fake.set("6.mig", 1)
    for call in ("GetRemappedRows", "GetUtilizationRates", "GetComputeRunningProcesses_v3", "GetFieldValues"):
        fake.set(f"6.nvmlDevice{call}", 3)
    found = ask(fake, 8)
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


def test_a_fault_that_passes_is_none(tmp_path: Path) -> None:
    fake = FakeDriver(tmp_path, gpus=2)
    fake.set("0.pcie_width", 8)
    environment = os.environ | fake.environment
    command = [sys.executable, "-m", "scaletrain.hardware.gpus", "2"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stderr is not None
        for line in running.stderr:  # the first reading is over when the driver is asked for events
            if "XID" in line:
                fake.heal()
                break
        printed, _ = running.communicate(timeout=60)
    assert {one["check"]: one["status"] for one in json.loads(printed)} == {"gpus": "ok", "gpu 0": "ok", "gpu 1": "ok"}


def test_gpus_of_other_jobs_are_not_judged(tmp_path: Path) -> None:
    fake = FakeDriver(tmp_path, gpus=4)
    fake.set("0.lost", 1)
    assert ask(fake, 2, CUDA_VISIBLE_DEVICES="2,3").keys() == {"gpus", "gpu 2", "gpu 3"}
    uuid = "GPU-00000000-0000-0000-0000-000000000001"
    assert ask(fake, 1, CUDA_VISIBLE_DEVICES=uuid).keys() == {"gpus", "gpu 1"}


def test_a_users_rules_are_heeded(tmp_path: Path) -> None:
    fake = FakeDriver(tmp_path, gpus=2)
    fake.set("0.rows_pending", 1)
    (tmp_path / "rules.yaml").write_text("row_remap_pending: {severity: warn}\n")
    assert ask(fake, 2, str(tmp_path / "rules.yaml"))["gpu 0 row_remap_pending"].status == "warn"
    (tmp_path / "rules.yaml").write_text("row_remap_pending: {severity: mild}\n")
    refused = ask(fake, 2, str(tmp_path / "rules.yaml"))
    assert "row_remap_pending.severity = mild" in refused["health rules"].detail


def test_a_driver_that_is_not_loaded_fails(tmp_path: Path) -> None:
    fake = FakeDriver(tmp_path, gpus=2)
    fake.set("init", 9)
    assert "reboot" in ask(fake)["driver_failing"].detail


def test_a_machine_without_a_driver_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_text("hides that of a machine which has one")
    found = ask(FakeDriver(tmp_path), 2, LD_LIBRARY_PATH=str(tmp_path))
    assert (found["nvml"].status, "not available" in found["nvml"].detail) == ("unknown", True)


def test_a_call_that_never_returns_is_told_before(tmp_path: Path) -> None:
    fake = FakeDriver(tmp_path, gpus=2)
    fake.set("1.hang", "nvmlDeviceGetRemappedRows")
    command = [sys.executable, "-m", "scaletrain.hardware.gpus", "2"]
    environment = os.environ | fake.environment
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if line == HUNG:
                break
        with pytest.raises(subprocess.TimeoutExpired):
            running.wait(0.5)
        running.kill()


@pytest.mark.thorough
def test_a_call_that_never_returns_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeDriver(tmp_path, gpus=2)
    fake.set("1.hang", "nvmlDeviceGetRemappedRows")
    fake.install(monkeypatch)
    check = BoundedCheck("nvml", ["scaletrain.hardware.gpus", "2"], 60, "reboot the node")
    assert check.findings() == [Finding("nvml", "fail", f"no answer within 60 s ({HUNG.strip()}); reboot the node")]
