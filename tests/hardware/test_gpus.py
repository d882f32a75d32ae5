"""The driver's answers, through the real client library over a library of NVML's name that was made for the test."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from scaletrain.hardware.bounded import BoundedCheck
from scaletrain.hardware.findings import Finding

Ask = Callable[[str], dict[str, Finding]]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nvml")
    source = Path(__file__).with_name("fake_nvml.c")
    command = ["g++", "-x", "c++", "-fpermissive", "-w", "-shared", "-fPIC", "-o", str(folder / "libnvidia-ml.so.1")]
    text = f'extern "C" {{\n{source.read_text()}\n}}\n'
    subprocess.run([*command, "-"], input=text, text=True, check=True)
    return folder


@pytest.fixture
def ask(library: Path, tmp_path: Path) -> Ask:
    def asked(faults: str) -> dict[str, Finding]:
        (tmp_path / "faults").write_text(faults)
        environment = os.environ | {"LD_LIBRARY_PATH": str(library), "FAKE_NVML": str(tmp_path / "faults")}
        command = [sys.executable, "-m", "scaletrain.hardware.gpus", "2"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return {one["check"]: Finding(**one) for one in json.loads(done.stdout)}

    return asked


def test_healthy_gpus_pass(ask: Ask) -> None:
    assert {name: one.status for name, one in ask("").items()} == {
        "gpus": "ok",
        "gpu 0 rows": "ok",
        "gpu 0 ecc": "ok",
        "gpu 1 rows": "ok",
        "gpu 1 ecc": "ok",
    }


@pytest.mark.parametrize(
    ("faults", "check", "status", "words"),
    [
        ("count=1", "gpus", "fail", "1 of 2"),
        ("lost=1", "gpu 1", "fail", "reboot"),
        ("pending=0", "gpu 0 rows", "fail", "reset the GPU"),
        ("failed=1", "gpu 1 rows", "fail", "replaced"),
        ("ecc=1", "gpu 1 ecc", "warn", "3 uncorrectable"),
        ("unsupported=0", "gpu 0 ecc", "unknown", "not supported"),
        ("unsupported=0", "gpu 0 rows", "unknown", "not supported"),
        ("denied=1", "gpu 1 ecc", "unknown", "not allowed"),
        ("unloaded", "nvml", "fail", "reboot"),
    ],
)
def test_each_fault_is_named(ask: Ask, faults: str, check: str, status: str, words: str) -> None:
    found = ask(faults)
    assert found[check].status == status
    assert words in found[check].detail
    others = [one for name, one in found.items() if not name.startswith(check)]
    assert all(one.status in ("ok", "unknown") for one in others)


def test_a_gpu_that_shares_the_hosts_memory_is_sound(ask: Ask) -> None:
    assert ask("shared=0").keys() == ask("").keys()


def test_a_call_that_never_returns_is_a_finding(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "faults").write_text("stuck=1")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library))
    monkeypatch.setenv("FAKE_NVML", str(tmp_path / "faults"))
    check = BoundedCheck("nvml", ["scaletrain.hardware.gpus", "2"], 2, "reboot the node")
    assert check.findings() == [Finding("nvml", "fail", "no answer within 2 s (asks GPU 1); reboot the node")]
