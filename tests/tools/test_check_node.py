"""tools/check_node.py as an administrator meets it: findings, exit codes, one line for Nagios, and an end in time."""

import json
import os
import re
import runpy
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.fake_nvml import FakeDriver

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "check_node.py"
LIMIT_S = 12.0
LATE_S = 60.0  # for processes to start and to end, on a busy machine
LINE = re.compile(r"(OK|WARNING|CRITICAL|UNKNOWN) - [^|\n]+( \| ('[^'=|]+'=[-0-9.]+ ?)+)?\n")


class Done(NamedTuple):
    """How the tool ended."""

    code: int
    out: str
    error: str

    @property
    def findings(self) -> dict[str, dict[str, Any]]:
        assert self.out, self.error
        return {one["check"]: one for one in json.loads(self.out)["findings"]}


Check = Callable[..., Done]


@pytest.fixture
def check(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Check:
    """Calls the tool in this process; what it starts gets the environment that is given."""
    monkeypatch.syspath_prepend(str(TOOL.parent))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("SLURMD_NODENAME", "n7")

    def call(*words: str, **environ: str) -> Done:
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", [str(TOOL), *words])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(TOOL), run_name="__main__")
        assert isinstance(ended.value.code, int)
        return Done(ended.value.code, *capfd.readouterr())

    return call


@pytest.fixture
def fake(tmp_path: Path) -> FakeDriver:
    return FakeDriver(tmp_path, gpus=2)


@pytest.fixture
def without_driver(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "libnvidia-ml.so.1").write_text("hides that of a machine which has one")
    return {"LD_LIBRARY_PATH": str(tmp_path)}


def test_a_machine_without_a_gpu_is_told_of_once(check: Check, without_driver: dict[str, str]) -> None:
    done = check("--quick", **without_driver)
    assert done.code == 0, done.out
    lines = done.out.splitlines()
    assert all(re.match(r"n7: (ok|warn) +\S", line) for line in lines), done.out
    assert [line for line in lines if "GPU" in line.upper() or "nvml" in line.lower()] == [
        line for line in lines if line.startswith("n7: ok      gpus: none: no driver of NVIDIA's here")
    ]
    assert {"memory", "disk", "shm", "names"} <= {line.split(":")[1].split()[-1] for line in lines}


def test_healthy_gpus_pass(check: Check, fake: FakeDriver) -> None:
    done = check("--quick", "--json", "--expect", "gpus=2,driver=575,cuda=12.9,nvlinks=4", **fake.environment)
    assert done.code == 0, done.out
    told = json.loads(done.out)
    assert told.keys() == {"host", "time_s", "status", "findings"}
    assert told["host"] == "n7" and abs(told["time_s"] - time.time()) < 200
    assert all(one.keys() == {"check", "status", "detail", "figures"} for one in told["findings"])
    found = done.findings
    assert found["gpus"]["detail"] == "2 of 2"
    for name in ("gpu 0", "gpu 1", "gpu 0 topology", "gpu 1 topology", "driver", "memory", "disk", "shm"):
        assert found[name]["status"] == "ok"
    assert found["gpu 1 topology"]["figures"]["nvlinks_up"] == 4
    assert found["memory"]["figures"]["free_gib"] > 0


def test_what_is_wrong_is_named_and_the_exit_code_says_so(check: Check, fake: FakeDriver) -> None:
    fake.set("0.lost", 1)
    fake.set("1.temperature", 91)
    expected = "gpus=3,driver=570,nvlinks=5,min_free_gib=1e9"
    done = check("--quick", "--json", "--expect", expected, **fake.environment)
    assert done.code == 1
    found = done.findings
    failed = {name for name, one in found.items() if one["status"] == "fail"}
    assert failed == {"gpus_short", "gpu 0 gpu_lost", "driver", "gpu 1 topology", "disk"}
    assert found["gpu 1 temperature"]["status"] == "warn"
    assert json.loads(done.out)["status"] == "fail"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "word", "code"),
    [
        ({}, "OK", 0),
        ({"1.processes": 1}, "WARNING", 1),  # 50 s would make sure of it
        ({"1.rows_pending": 1}, "CRITICAL", 2),
        ({"1.nvmlDeviceGetRemappedRows": 4}, "UNKNOWN", 3),
    ],
)
def test_nagios_gets_one_line_and_a_code(
    check: Check, fake: FakeDriver, fault: dict[str, int], word: str, code: int
) -> None:
    for key, value in fault.items():
        fake.set(key, value)
    # A rule about a host that is busy now is no matter of this test.
    rules = Path(fake.environment["FAKE_NVML"]).with_name("rules.yaml")
    rules.write_text("".join(f"{name}: off\n" for name in ("host_memory_full", "host_memory_stalled")))
    done = check("--quick", "--nagios", "--rules", str(rules), **fake.environment)
    assert (done.out.split(" - ")[0], done.code) == (word, code), done.out
    assert LINE.fullmatch(done.out), done.out
    assert done.error == ""
    assert word == "OK" or "gpu 1" in done.out.split(" | ")[0]


def test_a_users_rules_are_those_in_force(check: Check, fake: FakeDriver, tmp_path: Path) -> None:
    """As docs/node_check.md has them, for what was left on a GPU to count at once."""
    fake.set("1.processes", 1)
    page = (ROOT / "docs" / "node_check.md").read_text()
    (tmp_path / "rules.yaml").write_text(page.split("```yaml\n")[1].split("```")[0])
    done = check("--quick", "--json", "--rules", str(tmp_path / "rules.yaml"), **fake.environment)
    assert done.code == 1
    assert done.findings["gpu 1 leftover_processes"]["status"] == "fail"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--expect", "gpu=8"], "give some of gpus="),
        (["--json", "--nagios"], "choose one"),
        (["--limit_s", "0"], "--limit_s 0 is out of range"),
        (["--rules", "{folder}/rules.yaml"], "row_remap_pending.severity = mild"),
        (["--rules", "{folder}/rules.yaml"], "host_cpu_hot.severity = dire"),
        (["--quik"], "quik"),
    ],
)
def test_a_mistake_is_no_verdict_on_the_node(check: Check, tmp_path: Path, words: list[str], said: str) -> None:
    (tmp_path / "rules.yaml").write_text("row_remap_pending: {severity: mild}\nhost_cpu_hot: {severity: dire}\n")
    given = [word.format(folder=tmp_path) for word in words]
    done = check("--quick", *given)
    is_for_nagios = "--nagios" in words
    assert done.code == (3 if is_for_nagios else 2)
    assert said in (done.out if is_for_nagios else done.error)


@pytest.mark.parametrize("option", ["--nagios", "-n"])
def test_a_mistake_is_unknown_to_nagios(check: Check, option: str) -> None:
    done = check(option, "--expect", "gpu=8")
    assert done.code == 3
    assert "give some of gpus=" in done.out


@pytest.mark.parametrize("expected", ["gpus=8", "nvlinks=18"])
def test_gpus_that_no_driver_knows_of_fail_the_node(
    check: Check, without_driver: dict[str, str], expected: str
) -> None:
    done = check("--quick", "--nagios", "--expect", expected, **without_driver)
    assert done.code == 2
    assert "install it, or expect no GPUs" in done.out


def test_a_node_too_slow_to_begin_is_not_sick(check: Check, tmp_path: Path, without_driver: dict[str, str]) -> None:
    """Python itself takes too long to start there."""
    (tmp_path / "sitecustomize.py").write_text("import time\ntime.sleep(600)\n")
    done = check("--json", "--limit_s", "2", **without_driver, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert done.code == 0, done.out
    for name in ("folders", "names", "host"):
        assert done.findings[name]["status"] == "unknown"
        assert "it has not begun" in done.findings[name]["detail"]
    assert started_with(tmp_path) == []


def test_what_is_typed_counts_for_more_than_the_environment(check: Check, fake: FakeDriver) -> None:
    """Of the driver alone, too; without a word the GPUs are left out, as test_it_runs_from_anywhere has it."""
    environ = {"DS_ACCELERATOR": "cpu", **fake.environment}
    for expected, failed in (("gpus=3,nvlinks=4", {"gpus_short"}), ("driver=570", {"driver"})):
        done = check("--quick", "--json", "--expect", expected, **environ)
        assert {name for name, one in done.findings.items() if one["status"] == "fail"} == failed


def test_what_is_expected_and_not_looked_at_is_unknown(check: Check, fake: FakeDriver) -> None:
    done = check("--quick", "--json", "--expect", "driver=575,all_reduce_gb_per_s=300", **fake.environment)
    assert done.findings["driver"]["status"] == "ok"
    assert done.findings["expected"]["status"] == "unknown"
    assert done.findings["expected"]["detail"].startswith("not looked at: all_reduce_gb_per_s=300.0;")


@pytest.mark.thorough
def test_a_driver_that_only_torch_can_do_without_is_unknown(check: Check, without_driver: dict[str, str]) -> None:
    """GPUs of another maker."""
    found = check("--json", "--expect", "gpus=1,driver=570", **without_driver).findings
    assert found["nvml"]["status"] == found["expected"]["status"] == "unknown"
    assert found["expected"]["detail"].startswith("not looked at: driver=570;")


def bounded(check: Check, limit_s: float, *words: str, **environ: str) -> dict[str, dict[str, Any]]:
    """What is found within the limit."""
    started_s = time.monotonic()
    done = check("--json", "--limit_s", str(limit_s), *words, **environ)
    assert time.monotonic() - started_s < limit_s + LATE_S
    assert done.code == 1, done.out
    return done.findings


def test_a_driver_that_hangs_holds_it_no_longer_than_the_limit(check: Check, fake: FakeDriver) -> None:
    fake.set("1.hang", "nvmlDeviceGetRemappedRows")
    found = bounded(check, LIMIT_S, **fake.environment)
    assert found["nvml"]["status"] == "fail"
    assert "remapped rows and retired pages of GPU 1" in found["nvml"]["detail"]
    assert found["arithmetic"]["detail"] == "left out: the driver does not answer"
    assert found["memory"]["status"] == "ok"


@pytest.mark.thorough
def test_a_driver_that_hangs_breaks_a_rule_in_the_time_that_slurm_gives(check: Check, fake: FakeDriver) -> None:
    fake.set("hang", "nvmlInitWithFlags")
    assert bounded(check, 50.0, "--quick", **fake.environment)["driver_silent"]["status"] == "fail"


# In place of torch: what is said last before a product that never comes back.
HANGS = """
import time
from scaletrain.hardware.bounded import announce
announce("multiplies on gpu 3")
time.sleep(600)
"""


@pytest.mark.slow
def test_a_burn_that_hangs_is_ended_and_told_where(
    check: Check, tmp_path: Path, without_driver: dict[str, str]
) -> None:
    (tmp_path / "torch.py").write_text(HANGS)
    found = bounded(check, LIMIT_S, **without_driver, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert found["arithmetic"]["status"] == "fail"
    assert found["arithmetic"]["detail"].endswith(
        "(multiplies on gpu 3); give more time by --limit_s, or reboot the node"
    )
    assert found["bandwidth"]["status"] == found["all-reduce"]["status"] == "unknown"
    assert started_with(tmp_path) == []


@pytest.mark.slow
def test_a_burn_names_a_gpu_by_the_drivers_number(check: Check, tmp_path: Path, fake: FakeDriver) -> None:
    fake.set("gpus", 6)
    (tmp_path / "torch.py").write_text(HANGS.replace("gpu 3", "gpu 1"))
    environ = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "CUDA_VISIBLE_DEVICES": "4,5"}
    found = bounded(check, LIMIT_S, **fake.environment, **environ)
    assert "multiplies on gpu 5" in found["arithmetic"]["detail"]
    assert {"gpu 4", "gpu 5", "gpu 5 topology"} <= found.keys()


def started_with(folder: Path) -> list[str]:
    """Processes that have a folder in the environment that they were started with, but for this one."""
    found = []
    for entry in os.listdir("/proc"):
        try:
            text = Path(f"/proc/{entry}/environ").read_text(errors="replace") if entry.isdigit() else ""
        except OSError:
            continue
        if f"PYTHONPATH={folder}" in text:
            found.append(entry)
    return found


@pytest.mark.slow
def test_the_whole_on_a_machine_without_gpus(check: Check, without_driver: dict[str, str]) -> None:
    found = check("--json", "--limit_s", "120", **without_driver).findings
    for name in ("cpu arithmetic", "cpu checksum", "cpu bandwidth", "all-reduce"):
        assert found[name]["status"] == "ok", found[name]
    assert found["all-reduce"]["figures"]["all_reduce_gb_per_s"] > 0


def test_it_runs_from_anywhere(tmp_path: Path) -> None:
    """As a prolog does: without an environment to speak of."""
    environ = {"PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [sys.executable, str(TOOL), "--quick"], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "gpus: left out: DS_ACCELERATOR=cpu" in done.stdout


@pytest.mark.parametrize(
    ("python", "drains"),
    [
        ("echo 'CRITICAL - n7: gpu 3 row_remap_pending: ...'; exit 2", True),
        ("echo 'OK - n7: 6 checks'", False),
        ("echo 'UNKNOWN - the check itself failed'; exit 3", False),
        ("echo 'ModuleNotFoundError: ...' >&2; exit 1", False),
        ("echo 'cannot open file' >&2; exit 2", False),
        (None, False),
    ],
    ids=["sick", "sound", "failed", "no package", "no tool", "no python"],
)
def test_the_scripts_of_the_page_drain_for_what_is_the_nodes_alone(
    tmp_path: Path, python: str | None, drains: bool
) -> None:
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    if python is not None:
        (tmp_path / ".venv" / "bin" / "python").write_text(f"#!/bin/bash\n{python}\n")
        (tmp_path / ".venv" / "bin" / "python").chmod(0o755)
    page = (ROOT / "docs" / "node_check.md").read_text().replace("/opt/scaletrain/checkout", str(tmp_path))
    health, prolog = re.findall(r"```bash\n(#!/bin/bash\n.*?)```", page, re.DOTALL)
    asked = subprocess.run(["bash", "-c", health.replace("scontrol", "echo")], capture_output=True, text=True)
    assert asked.returncode == 0
    assert ("State=DRAIN" in asked.stdout) == drains
    assert (subprocess.run(["bash", "-c", prolog], capture_output=True).returncode != 0) == drains


def test_the_help_lists_options_and_nothing_else(check: Check) -> None:
    done = check("--help")
    assert done.code == 0
    told = done.out + done.error
    assert "check_node.py <flags>" in told and "--expect" in told
    assert "GROUP" not in told
