"""What the reader makes of a driver's answers, through the real client library."""

import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaletrain.hardware.readings import (
    EccCounts,
    GpuProcess,
    GpuReading,
    LinkReading,
    Reading,
    XidEvent,
    untold,
    uptime_s,
)
from tests.fake_nvml import FakeDriver

# Reads once for each line of its input.
READ = """
import sys
from scaletrain.hardware.nvml import NvmlReader
reader = NvmlReader()
for line in sys.stdin:
    print(reader.read().to_json(), flush=True)
"""
# All that a GPU of a data center tells, other than what the fake driver says by itself.
TOLD: dict[str, int] = {
    "memory_temperature": 61,
    "margin": 42,
    "max_tlimit": -2,
    "power": 512_250,
    "clock": 1755,
    "reasons": 0x4,
    "utilization": 97,
    "volatile_corrected": 11,
    "volatile_uncorrected": 12,
    "volatile_sram_corrected": 13,
    "volatile_sram_uncorrected": 14,
    "volatile_dram_corrected": 15,
    "volatile_dram_uncorrected": 16,
    "aggregate_corrected": 21,
    "aggregate_uncorrected": 22,
    "aggregate_sram_corrected": 23,
    "aggregate_sram_uncorrected": 24,
    "aggregate_dram_corrected": 25,
    "aggregate_dram_uncorrected": 26,
    "sram_exceeded": 1,
    "rows_corrected": 31,
    "rows_uncorrected": 32,
    "rows_pending": 1,
    "rows_failed": 1,
    "pages_single_bit": 4,
    "pages_double_bit": 5,
    "pages_pending": 1,
    "pcie_generation": 4,
    "pcie_width": 8,
    "pcie_replays": 77,
    "links": 2,
    "link1.active": 0,
    "link1.replays": 6,
    "link1.recoveries": 7,
    "link1.crc": 2**40,
    "memory_mib": 1000,
    "processes": 2,
    "pid": 4100,
    "recovery_action": 2,
    "mig": 1,
}
WHOLE = GpuReading(
    1,
    uuid="GPU-00000000-0000-0000-0000-000000000001",
    serial="1650123000001",
    bus_id="0000:10:00.0",
    name="NVIDIA Fake 80GB",
    temperature_c=41,
    memory_temperature_c=61,
    temperature_margin_c=42,
    max_temperature_c=87,
    slowdown_temperature_c=89,
    shutdown_temperature_c=92,
    max_memory_temperature_c=95,
    max_temperature_margin_c=-2,
    power_w=512.25,
    power_limit_w=700.0,
    clock_mhz=1755,
    max_clock_mhz=1980,
    memory_clock_mhz=2619,
    max_memory_clock_mhz=2619,
    clock_event_reasons=4,
    utilization_percent=97,
    is_ecc_enabled=True,
    ecc_volatile=EccCounts(11, 12, 13, 14, 15, 16),
    ecc_aggregate=EccCounts(21, 22, 23, 24, 25, 26),
    sram_threshold_exceeded=True,
    rows_corrected=31,
    rows_uncorrected=32,
    row_remap_pending=True,
    row_remap_failed=True,
    pages_single_bit=4,
    pages_double_bit=5,
    pages_pending=True,
    pcie_generation=4,
    max_pcie_generation=5,
    pcie_width=8,
    max_pcie_width=16,
    pcie_replays=77,
    links=(LinkReading(0, True, 0, 0, 0), LinkReading(1, False, 6, 7, 2**40)),
    memory_used_bytes=1000 << 20,
    memory_total_bytes=80 << 30,
    processes=(GpuProcess(4100, 1 << 30), GpuProcess(4101, 1 << 30)),
    recovery_action=2,
    is_mig_enabled=True,
)
# Calls that are asked of a GPU, and what is unknown where one of them is not answered.
CALLS = {
    "nvmlDeviceGetSerial": {"serial"},
    "nvmlDeviceGetName": {"name"},
    "nvmlDeviceGetPciInfo_v3": {"bus_id"},
    "nvmlDeviceGetMigMode": {"is_mig_enabled"},
    "nvmlDeviceGetTemperature": {"temperature_c"},
    "nvmlDeviceGetMarginTemperature": {"temperature_margin_c"},
    "nvmlDeviceGetTemperatureThreshold": {
        "max_temperature_c",
        "slowdown_temperature_c",
        "shutdown_temperature_c",
        "max_memory_temperature_c",
    },
    "nvmlDeviceGetPowerUsage": {"power_w"},
    "nvmlDeviceGetEnforcedPowerLimit": {"power_limit_w"},
    "nvmlDeviceGetClockInfo": {"clock_mhz", "memory_clock_mhz"},
    "nvmlDeviceGetMaxClockInfo": {"max_clock_mhz", "max_memory_clock_mhz"},
    "nvmlDeviceGetUtilizationRates": {"utilization_percent"},
    "nvmlDeviceGetEccMode": {"is_ecc_enabled"},
    "nvmlDeviceGetTotalEccErrors": {
        f"{counter}.{kind}" for counter in ("ecc_volatile", "ecc_aggregate") for kind in ("corrected", "uncorrected")
    },
    "nvmlDeviceGetMemoryErrorCounter": {
        f"{counter}.{place}_{kind}"
        for counter in ("ecc_volatile", "ecc_aggregate")
        for place in ("sram", "dram")
        for kind in ("corrected", "uncorrected")
    },
    "nvmlDeviceGetSramEccErrorStatus": {"sram_threshold_exceeded"},
    "nvmlDeviceGetRemappedRows": {"rows_corrected", "rows_uncorrected", "row_remap_pending", "row_remap_failed"},
    "nvmlDeviceGetRetiredPages": {"pages_single_bit", "pages_double_bit"},
    "nvmlDeviceGetRetiredPagesPendingStatus": {"pages_pending"},
    "nvmlDeviceGetCurrPcieLinkGeneration": {"pcie_generation"},
    "nvmlDeviceGetMaxPcieLinkGeneration": {"max_pcie_generation"},
    "nvmlDeviceGetCurrPcieLinkWidth": {"pcie_width"},
    "nvmlDeviceGetMaxPcieLinkWidth": {"max_pcie_width"},
    "nvmlDeviceGetPcieReplayCounter": {"pcie_replays"},
    "nvmlDeviceGetFieldValues": {"recovery_action", "memory_temperature_c", "max_temperature_margin_c"},
}


class Reader:
    """A process that reads when told."""

    def __init__(self, fake: FakeDriver) -> None:
        self.fake = fake
        environment = os.environ | fake.environment
        command = [sys.executable, "-c", READ]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def read(self) -> Reading:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write("read\n")
        self._process.stdin.flush()
        return Reading.from_json(self._process.stdout.readline())


def tell_all(fake: FakeDriver, gpu: int) -> None:
    for key, value in TOLD.items():
        fake.set(f"{gpu}.{key}", value)


def test_every_value_arrives(tmp_path: Path) -> None:
    fake = FakeDriver(tmp_path, gpus=2)
    tell_all(fake, 1)
    with Reader(fake) as reader:
        reading = reader.read()
    assert (reading.driver, reading.version, len(reading.gpus)) == ("ok", "575.51.03", 2)
    assert reading.uptime_s is not None and 0 < reading.uptime_s <= (uptime_s() or 0)
    assert reading.gpus[1] == WHOLE
    assert untold(WHOLE) == []


def test_a_call_that_is_not_answered_leaves_its_values_unknown_and_no_others(tmp_path: Path) -> None:
    fake = FakeDriver(tmp_path, gpus=2)
    tell_all(fake, 1)
    with Reader(fake) as reader:
        for call, unknown in CALLS.items():
            for code in (3, 4, 999):  # not supported, no permission, unknown error
                fake.set(f"1.{call}", code)
                gpu = reader.read().gpus[1]
                assert (set(untold(gpu)), gpu.state) == (unknown, "ok"), f"{call} returns {code}"
                fake.unset(f"1.{call}")


def test_fallbacks_of_older_drivers(tmp_path: Path) -> None:
    fake = FakeDriver(tmp_path, gpus=2)
    tell_all(fake, 1)
    with Reader(fake) as reader:
        fake.set("1.nvmlDeviceGetCurrentClocksEventReasons", 3)
        fake.set("1.nvmlDeviceGetComputeRunningProcesses_v3", 3)
        fake.set("1.old_links", 1)
        assert reader.read().gpus[1] == WHOLE
        fake.set("1.blackwell", 1)
        fake.set("1.nvmlDeviceGetNvLinkErrorCounter", 3)
        links = (LinkReading(0, True, None, 0, None), LinkReading(1, False, None, 7, None))
        assert reader.read().gpus[1] == replace(WHOLE, links=links)


def test_an_old_driver_lacks_what_came_later(tmp_path: Path) -> None:
    fake = FakeDriver(tmp_path, gpus=2, is_old=True)
    tell_all(fake, 1)
    with Reader(fake) as reader:
        gpu = reader.read().gpus[1]
    assert set(untold(gpu)) == {
        "temperature_margin_c",
        "sram_threshold_exceeded",
        "rows_corrected",
        "rows_uncorrected",
        "row_remap_pending",
        "row_remap_failed",
    }
    assert (gpu.memory_used_bytes, gpu.clock_event_reasons) == (1600 << 20, 4)


@pytest.mark.parametrize("gpus", [0, 1, 16])
def test_any_number_of_gpus(tmp_path: Path, gpus: int) -> None:
    with Reader(FakeDriver(tmp_path, gpus=gpus)) as reader:
        reading = reader.read()
    assert [gpu.index for gpu in reading.gpus] == list(range(gpus))
    assert len({gpu.uuid for gpu in reading.gpus}) == len({gpu.bus_id for gpu in reading.gpus}) == gpus


def test_states_of_gpus_and_of_the_driver(tmp_path: Path) -> None:
    fake = FakeDriver(tmp_path, gpus=6)
    fake.set("0.lost", 1)
    fake.set("1.reset", 1)
    fake.set("2.nvmlDeviceGetUUID", 999)
    fake.set("3.nvmlDeviceGetHandleByIndex_v2", 4)  # of another job
    fake.set("4.nvmlDeviceGetPowerUsage", 15)  # is lost in the middle
    with Reader(fake) as reader:
        states = {gpu.index: gpu.state for gpu in reader.read().gpus}
        assert states == {0: "lost", 1: "reset_required", 2: "failing", 4: "lost", 5: "ok"}
        fake.heal()
        assert {gpu.state for gpu in reader.read().gpus} == {"ok"}
        fake.set("nvmlDeviceGetCount_v2", 999)
        assert reader.read().driver == "failing"
        fake.set("init", 18)
        failing = reader.read()
        assert failing.driver == "failing" and "mismatch" in failing.detail.lower()
        fake.heal()
        assert len(reader.read().gpus) == 6


def test_xids_are_told_once_and_also_while_another_gpu_is_lost(tmp_path: Path) -> None:
    fake = FakeDriver(tmp_path, gpus=2)
    fake.xid(0, 13)  # before anybody listened
    with Reader(fake) as reader:
        first = reader.read()
        assert (first.xids, first.hears_xids) == ((), True)
        fake.xid(1, 94)
        fake.xid(0, 63)
        assert reader.read().xids == (XidEvent(94, "0000:10:00.0"), XidEvent(63, "0000:0f:00.0"))
        assert reader.read().xids == ()
        fake.set("0.lost", 1)
        fake.set("events", 15)
        reader.read()
        fake.unset("events")
        reader.read()
        fake.xid(1, 79)
        assert reader.read().xids == (XidEvent(79, "0000:10:00.0"),)


def test_a_user_who_may_not_hear_of_xids(tmp_path: Path) -> None:
    fake = FakeDriver(tmp_path, gpus=1)
    fake.set("0.nvmlDeviceRegisterEvents", 4)
    with Reader(fake) as reader:
        reading = reader.read()
    assert (reading.driver, reading.gpus[0].state, reading.hears_xids) == ("ok", "ok", False)


def test_a_link_that_does_not_answer_for_once_is_asked_again(tmp_path: Path) -> None:
    fake = FakeDriver(tmp_path, gpus=1)
    with Reader(fake) as reader:
        assert len(reader.read().gpus[0].links) == 4
        fake.set("0.nvmlDeviceGetNvLinkState", 999)
        assert reader.read().gpus[0].links == ()
        fake.heal()
        assert len(reader.read().gpus[0].links) == 4


numbers = st.none() | st.integers(0, 2**63)


@given(
    st.builds(
        GpuReading,
        index=st.integers(0, 15),
        pcie_replays=numbers,
        detail=st.text(),
        power_w=st.none() | st.floats(0, 1e4),
    )
)
def test_a_reading_survives_its_json(gpu: GpuReading) -> None:
    reading = Reading("ok", gpus=(gpu, WHOLE), xids=(XidEvent(79, None, "x", "kernel log", True, True),))
    text = reading.to_json()
    assert "\n" not in text and Reading.from_json(text) == reading


def test_every_value_is_of_some_call() -> None:
    told_by_calls = set().union(*CALLS.values())
    plain = {one.name for one in fields(GpuReading)} - {"index", "state", "detail", "ecc_volatile", "ecc_aggregate"}
    must_answer, other = (
        {"uuid", "memory_used_bytes", "memory_total_bytes"},
        {"clock_event_reasons", "processes", "links"},
    )
    assert plain - must_answer - other <= told_by_calls
