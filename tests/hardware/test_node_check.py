"""The check of a node as the launcher runs it: a process, whose findings lie in the shared folder."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from scaletrain.hardware.checklist import check_for_job
from scaletrain.hardware.expectation import Expectation
from scaletrain.hardware.node_check import main
from tests.fake_nvml import FakeDriver

TOKEN = "the token of this start"


def run_check(folder: Path, **changes: Any) -> tuple[int, str, dict[str, Any]]:
    (folder / "token").write_text(TOKEN)
    expected = {"gpus": 0, "shared_dir": str(folder), "token": TOKEN, "addresses": {}} | changes
    command = [sys.executable, "-m", "scaletrain.hardware.node_check", json.dumps(expected)]
    environment = os.environ | {"SLURMD_NODENAME": "n7"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90)
    return done.returncode, done.stdout, json.loads((folder / "n7.json").read_text())


def test_this_machine_passes(tmp_path: Path) -> None:
    before_s = time.time()
    code, printed, told = run_check(tmp_path, addresses={"localhost": "127.0.0.1"})
    assert code == 0, printed
    assert before_s <= told["time_s"] <= time.time()
    by_check = {one["check"]: one for one in told["findings"]}
    assert by_check["cpu arithmetic"]["status"] == "ok"
    assert by_check["gpus"]["detail"].startswith("left out")
    assert {"memory", "disk", "shm", "shared files", "names"} <= by_check.keys()
    assert "n7: ok" in printed


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({"token": "of another start"}, "shared files"),
        ({"min_memory_gib": 1e6}, "memory"),
        ({"min_free_gib": 1e6}, "disk"),
        ({"addresses": {"n9": "no.such.host.invalid"}}, "names"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, changes: dict[str, Any], check: str) -> None:
    (tmp_path / "token").write_text(TOKEN)
    # Too short a time for the arithmetic, which fails unless it has ended when the others are done.
    expected: dict[str, Any] = {"gpus": 0, "shared_dir": str(tmp_path), "token": TOKEN, "limit_s": 0.01} | changes
    failed = [one for one in check_for_job(Expectation(**expected)) if one.status == "fail"]
    assert [one.check for one in failed if one.check != "arithmetic"] == [check], failed


@pytest.mark.thorough
def test_gpus_that_are_not_there_are_missed(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    findings = check_for_job(Expectation(gpus=2, shared_dir=str(tmp_path), token=TOKEN, limit_s=60))
    (torch,) = [one for one in findings if one.check == "torch"]
    assert torch.status == "fail"
    assert "0 of 2" in torch.detail


def test_gpus_that_are_not_wanted_are_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    (tmp_path / "token").write_text(TOKEN)
    expected = Expectation(gpus=2, shared_dir=str(tmp_path), token=TOKEN, limit_s=0.01)
    found = {one.check: one for one in check_for_job(expected)}
    assert (found["gpus"].status, found["gpus"].detail) == ("ok", "left out: DS_ACCELERATOR=cpu")
    assert "nvml" not in found


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("row_remap_failed_before: off\n", ["gpus", "gpu 0"]),
        ("row_remap_failed_before: of\n", ["rules", "gpus", "gpu 0 row_remap_failed_before"]),
    ],
)
def test_a_jobs_own_rules_are_heeded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, told: list[str]
) -> None:
    """A mistake in them is no fault of the node."""
    fake = FakeDriver(tmp_path, gpus=1)
    fake.install(monkeypatch)
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "rules.yaml").write_text(text)
    fake.set("0.rows_failed", 1)
    expected = Expectation(1, str(tmp_path), TOKEN, limit_s=0.01, rules=str(tmp_path / "rules.yaml"))
    found = {one.check: one for one in check_for_job(expected)}
    assert [name for name in found if name.startswith(("gpu", "rules"))] == told
    assert "rules" not in found or (found["rules"].status, "line 1" in found["rules"].detail) == ("warn", True)


def test_an_expectation_survives_its_text() -> None:
    expected = Expectation(4, "/shared", "x", {"n1": "10.0.0.1"}, min_free_gib=2.5)
    assert Expectation.from_json(expected.to_json()) == expected


@pytest.mark.parametrize("text", ["{", "[]", '{"gpus": 1}', '{"gpus": 1, "shared_dir": "/", "token": "", "gpu": 1}'])
def test_what_is_no_expectation_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([text]) == 2
    assert text in capsys.readouterr().err
