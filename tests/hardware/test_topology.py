"""Versions, lanes and links as the fake driver tells them, and the kernel's files beside it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from scaletrain.hardware.prober import Prober
from scaletrain.hardware.readings import Reading
from scaletrain.hardware.topology import check_topology, check_versions
from tests.fake_nvml import FakeDriver

BOOTED_LONG_AGO_S, BOOTED_NOW_S = 1e6, 10.0


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reading]:
    """Of two GPUs with four links, of which one link of the second is down."""
    folder = tmp_path_factory.mktemp("driver")
    fake = FakeDriver(folder, gpus=2)
    fake.set("1.link2.active", 0)
    fake.set("1.pcie_generation", 1)
    fake.set("driver", "570.124.06")
    fake.set("cuda", 12080)
    with pytest.MonkeyPatch.context() as patch:
        fake.install(patch)
        prober = Prober(folder / "no kernel log")
        yield replace(prober.read(60.0), uptime_s=BOOTED_LONG_AGO_S)
        prober.close()


@pytest.mark.parametrize(
    ("driver", "cuda", "status"),
    [
        ("", "", "ok"),
        ("570", "12", "ok"),
        ("570.124", "12.8", "ok"),
        ("570.124.06", "", "ok"),
        ("570.12", "", "fail"),  # another version, whose digits begin alike
        ("575", "", "fail"),
        ("", "13", "fail"),
    ],
)
def test_versions_are_compared_as_far_as_they_are_given(reading: Reading, driver: str, cuda: str, status: str) -> None:
    found = check_versions(reading, driver, cuda)
    assert (found.check, found.status) == ("driver", status)
    assert found.detail.startswith("570.124.06, CUDA 12.8")


def test_a_version_that_is_not_told_is_not_the_one_expected(reading: Reading) -> None:
    silent = replace(reading, version=None, cuda_version=None)
    assert check_versions(silent, "", "").status == "ok"
    assert check_versions(silent, "570", "").status == "fail"


def test_each_gpu_tells_where_it_is(reading: Reading, tmp_path: Path) -> None:
    device = tmp_path / "bus/pci/devices/0000:10:00.0"
    device.mkdir(parents=True)
    (device / "numa_node").write_text("1\n")
    first, second = check_topology(reading, None, tmp_path)
    assert (first.check, first.status) == ("gpu 0 topology", "ok")
    assert first.detail == "PCIe generation 5 of 5; 16 of 16 lanes; 4 of 4 NVLinks are up; NUMA node not told"
    assert second.detail == "PCIe generation 1 of 5; 16 of 16 lanes; 3 of 4 NVLinks are up; NUMA node 1"
    assert second.figures == {
        "pcie_generation": 1,
        "pcie_lanes": 16,
        "nvlinks_up": 3,
        "nvlinks_down": 1,
        "numa_node": 1,
    }


def test_a_kernel_that_knows_no_node_tells_none(reading: Reading, tmp_path: Path) -> None:
    device = tmp_path / "bus/pci/devices/0000:0f:00.0"
    device.mkdir(parents=True)
    (device / "numa_node").write_text("-1\n")
    first, _ = check_topology(reading, None, tmp_path)
    assert "NUMA node not told" in first.detail and "numa_node" not in first.figures


def test_links_are_compared_with_those_expected(reading: Reading) -> None:
    assert [one.status for one in check_topology(reading, 4)] == ["ok", "fail"]
    assert [one.status for one in check_topology(reading, 18)] == ["fail", "fail"]
    young = replace(reading, uptime_s=BOOTED_NOW_S)
    assert [one.status for one in check_topology(young, 4)] == ["ok", "warn"]
    assert "in training" in check_topology(young, 4)[1].detail
