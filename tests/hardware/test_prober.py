"""Readings come back in time, whatever the driver and the process that asks it do."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from scaletrain.hardware.prober import Prober
from scaletrain.hardware.readings import Reading
from tests.fake_nvml import FakeDriver, read_hung
from tests.hardware.test_nvml import CALLS

ENOUGH_S = 60.0  # for a sound driver on a busy machine
XID = "6,{record},1,-;NVRM: Xid (PCI:0000:0F:00): {code}, pid=7\n"


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    fake = FakeDriver(tmp_path, gpus=2)
    fake.install(monkeypatch)
    (tmp_path / "kmsg").touch()
    return fake


@pytest.fixture
def prober(fake: FakeDriver, tmp_path: Path) -> Iterator[Prober]:
    prober = Prober(tmp_path / "kmsg", pause_s=0.0)
    yield prober
    prober.close()


def pids() -> set[int]:
    """Processes of ours that ask a driver and live."""
    found = set()
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # ends while it is looked at, or has ended
            if any("prober_process" in word for word in child.cmdline()):
                found.add(child.pid)
    return found


def log_xid(folder: Path, record: int, code: int) -> None:
    with (folder / "kmsg").open("a") as log:
        log.write(XID.format(record=record, code=code))


def test_a_process_answers_again_and_again(fake: FakeDriver, prober: Prober) -> None:
    assert [prober.read(ENOUGH_S).driver for _ in range(3)] == ["ok"] * 3
    (pid,) = pids()
    fake.set("1.temperature", 77)
    assert prober.read(ENOUGH_S).gpus[1].temperature_c == 77
    assert pids() == {pid}
    prober.close()
    assert pids() == set()


def test_a_call_that_hangs_is_given_up_and_named(fake: FakeDriver, prober: Prober) -> None:
    prober.read(ENOUGH_S)
    fake.set("1.hang", "nvmlDeviceGetPcieReplayCounter")
    before_s = time.monotonic()
    silent = prober.read(3.0)
    took_s = time.monotonic() - before_s
    assert (silent.driver, silent.asked_gpu) == ("silent", 1)
    assert silent.detail == "no answer within 3 s when asked for PCIe of GPU 1"
    assert took_s < ENOUGH_S
    assert read_hung(prober).driver == "silent"
    fake.unset("1.hang")
    assert prober.read(ENOUGH_S).driver == "ok"
    assert len(pids()) == 1  # those that were killed are gone


def test_a_driver_that_hangs_from_the_start(fake: FakeDriver, prober: Prober) -> None:
    fake.set("hang", "nvmlInitWithFlags")
    silent = read_hung(prober)
    assert silent.driver == "silent"
    assert re.fullmatch(r"no answer within \d+ s when asked for start", silent.detail)


def test_a_process_that_does_not_come_to_ask_says_nothing_of_the_driver(fake: FakeDriver, prober: Prober) -> None:
    assert prober.read(0.001).driver == "unasked"


def test_after_a_failure_there_is_a_pause(fake: FakeDriver, tmp_path: Path) -> None:
    prober = Prober(tmp_path / "kmsg", pause_s=ENOUGH_S)
    prober.read(ENOUGH_S)
    fake.set("0.hang", "all")
    assert [prober.read(0.5).driver for _ in range(3)] == ["silent", "unasked", "unasked"]
    prober.close()


@pytest.mark.parametrize(("number", "state"), [(signal.SIGSEGV, "failing"), (signal.SIGKILL, "unasked")])
def test_a_process_that_dies(fake: FakeDriver, prober: Prober, number: int, state: str) -> None:
    prober.read(ENOUGH_S)
    fake.set("0.hang", "nvmlDeviceGetEccMode")
    (pid,) = pids()
    killer = subprocess.Popen([sys.executable, "-c", f"import os, time; time.sleep(1); os.kill({pid}, {int(number)})"])
    ended = prober.read(ENOUGH_S)
    killer.wait()
    how = f"the process that asks ended with signal {int(number)} at ECC of GPU 0"
    assert (ended.driver, ended.detail) == (state, how)
    fake.heal()
    assert prober.read(ENOUGH_S).driver == "ok"


def test_a_stopped_process_is_given_up(fake: FakeDriver, prober: Prober) -> None:
    prober.read(ENOUGH_S)
    os.kill(*pids(), signal.SIGSTOP)
    assert prober.read(0.5).driver == "unasked"  # it came to ask nothing
    assert prober.read(ENOUGH_S).driver == "ok"


def test_a_jobs_signals_are_not_heeded(fake: FakeDriver, prober: Prober) -> None:
    prober.read(ENOUGH_S)
    (pid,) = pids()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        os.kill(pid, number)
    assert prober.read(ENOUGH_S).driver == "ok"
    assert pids() == {pid}


def test_xids_of_the_kernel_are_heard_while_the_driver_hangs(fake: FakeDriver, prober: Prober, tmp_path: Path) -> None:
    log_xid(tmp_path, 1, 13)  # before the job
    first = prober.read(ENOUGH_S)
    assert (first.xids, first.kernel_log) == ((), str(tmp_path / "kmsg"))
    fake.set("0.hang", "all")
    log_xid(tmp_path, 2, 119)
    silent = prober.read(3.0)
    assert silent.driver == "silent" and [event.code for event in silent.xids] == [119]
    # Written while nobody read: the process that takes over goes on behind what is known.
    log_xid(tmp_path, 3, 79)
    fake.unset("0.hang")
    assert [event.code for event in prober.read(ENOUGH_S).xids] == [79]
    assert prober.read(ENOUGH_S).xids == ()


def test_a_log_that_may_not_be_read_is_said(fake: FakeDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    prober = Prober(tmp_path / "none")
    reading = prober.read(ENOUGH_S)
    prober.close()
    assert (reading.driver, reading.kernel_log) == ("ok", None)


def test_a_machine_without_a_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_text("hides that of a machine which has one")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    prober = Prober(tmp_path / "kmsg")
    absent = prober.read(ENOUGH_S)
    prober.close()
    assert (absent.driver, absent.gpus) == ("absent", ())


def test_processes_that_cannot_be_ended_are_not_made_without_end(fake: FakeDriver, prober: Prober) -> None:
    # Nothing here outlives SIGKILL: processes that nobody has killed stand for what does.
    stuck = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) for _ in range(3)]
    prober._killed.extend(stuck)
    silent = prober.read(ENOUGH_S)
    assert silent.driver == "silent" and "cannot be ended" in silent.detail
    for one in stuck:
        one.kill()
        one.wait()
    assert prober.read(ENOUGH_S).driver == "ok"


def test_the_process_ends_with_the_one_that_asks(fake: FakeDriver, tmp_path: Path) -> None:
    fake.set("1.hang", "all")
    code = (
        "import os, pathlib, sys\nfrom scaletrain.hardware.prober import Prober\n"
        f"prober = Prober(pathlib.Path({str(tmp_path / 'kmsg')!r}))\nprober._process = prober._start()\n"
        "prober._process.stdin.write(b'read\\n')\nprober._process.stdout.readline()\n"
        "print(prober._process.pid, flush=True)\nos.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=ENOUGH_S)
    pid = int(done.stdout)
    until_s = time.monotonic() + ENOUGH_S
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until_s, f"{pid} still runs"
        time.sleep(0.05)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "call", [*CALLS, "nvmlDeviceGetUUID", "nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetNvLinkState"]
)
def test_whatever_call_hangs_is_given_up(fake: FakeDriver, prober: Prober, call: str) -> None:
    prober.read(ENOUGH_S)
    fake.set("1.hang", call)
    silent = read_hung(prober, 3.0)
    assert (silent.driver, silent.asked_gpu) == ("silent", 1)
    fake.heal()
    assert prober.read(ENOUGH_S).driver == "ok"


def test_what_a_reading_is() -> None:
    with pytest.raises((ValueError, TypeError)):
        Reading.from_json('{"gpus": [], "xids": [], "mood": 1, "driver": "ok"}')
