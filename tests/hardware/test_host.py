"""What the host offers, read from real control group files and through the real NVML client."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from scaletrain.hardware.cgroups import CgroupLimits, cgroup_limits
from scaletrain.hardware.host import describe_host, free_memory

# The calls of NVIDIA's library that the client makes, for two GPUs, the second of which shares the host's memory.
NVML = r"""
#include <stdio.h>
#include <string.h>
typedef struct { unsigned long long total, free, used; } memory_t;
extern "C" {
int nvmlInitWithFlags(unsigned) { return INIT; }
int nvmlInit_v2() { return INIT; }
int nvmlShutdown() { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) { *handle = (void *)(long)(index + 1); return 0; }
int nvmlDeviceGetName(void *, char *name, unsigned) { strcpy(name, "NVIDIA H100 80GB HBM3"); return 0; }
int nvmlDeviceGetMemoryInfo(void *handle, memory_t *memory) {
    if ((long)handle == 2) return 3;
    memory->total = 80ull << 30;
    return 0;
}
const char *nvmlErrorString(int) { return "error"; }
}
"""
SHOW = """
from scaletrain.hardware.host import describe_host
print([(gpu.index, gpu.name, gpu.memory_gib) for gpu in describe_host().gpus])
"""


def gpus_seen_with(folder: Path, init: int) -> str:
    source = folder / "nvml.cpp"
    source.write_text(NVML.replace("INIT", str(init)))
    library = folder / "libnvidia-ml.so.1"
    subprocess.run(["g++", "-w", "-shared", "-fPIC", "-o", library, source], check=True, timeout=60)
    environment = os.environ | {"LD_LIBRARY_PATH": str(folder)}
    result = subprocess.run(
        [sys.executable, "-c", SHOW], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    return result.stdout.strip()


def test_gpus_are_listed_through_nvml(tmp_path: Path) -> None:
    expected = [(0, "NVIDIA H100 80GB HBM3", 80.0), (1, "NVIDIA H100 80GB HBM3", None)]
    assert gpus_seen_with(tmp_path, init=0) == str(expected)


def test_a_driver_that_does_not_answer_means_no_gpus(tmp_path: Path) -> None:
    driver_not_loaded = 9
    assert gpus_seen_with(tmp_path, init=driver_not_loaded) == "[]"


def test_affinity_bounds_the_cores() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert describe_host().cores == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert 1 <= describe_host().cores <= len(allowed)


def test_memory_is_that_of_the_machine_or_less() -> None:
    assert 0 < describe_host().memory_gib <= psutil.virtual_memory().total / 2**30


@pytest.fixture
def groups(tmp_path: Path) -> tuple[Path, Path]:
    mount = tmp_path / "cgroup"
    mount.mkdir()
    return tmp_path / "membership", mount


def test_the_smallest_limit_on_the_way_up_counts_in_version_2(groups: tuple[Path, Path]) -> None:
    membership, mount = groups
    membership.write_text("0::/job/step\n")
    (mount / "job/step").mkdir(parents=True)
    (mount / "job/cpu.max").write_text("150000 100000\n")
    (mount / "job/step/cpu.max").write_text("max 100000\n")
    (mount / "job/memory.max").write_text("max\n")
    (mount / "job/step/memory.max").write_text("4294967296\n")
    assert cgroup_limits(membership, mount) == CgroupLimits(cpus=1.5, memory_bytes=2**32)


def test_limits_of_version_1(groups: tuple[Path, Path]) -> None:
    membership, mount = groups
    membership.write_text("5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n")
    (mount / "cpu,cpuacct").mkdir()
    (mount / "cpu,cpuacct/cpu.cfs_quota_us").write_text("300000\n")
    (mount / "cpu,cpuacct/cpu.cfs_period_us").write_text("100000\n")
    (mount / "memory/docker/abc").mkdir(parents=True)
    (mount / "memory/docker/abc/memory.limit_in_bytes").write_text("1073741824\n")
    (mount / "memory/memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert cgroup_limits(membership, mount) == CgroupLimits(cpus=3.0, memory_bytes=2**30)


def test_no_quota_and_no_control_groups_mean_no_limit(groups: tuple[Path, Path]) -> None:
    membership, mount = groups
    assert cgroup_limits(membership, mount) == CgroupLimits(None, None)
    membership.write_text("4:cpu:/\n")
    (mount / "cpu").mkdir()
    (mount / "cpu/cpu.cfs_quota_us").write_text("-1\n")
    (mount / "cpu/cpu.cfs_period_us").write_text("100000\n")
    assert cgroup_limits(membership, mount) == CgroupLimits(None, None)


def test_free_memory_is_what_the_tightest_group_leaves(tmp_path: Path) -> None:
    group = tmp_path / "job" / "step"
    group.mkdir(parents=True)
    (tmp_path / "membership").write_text("0::/job/step\n")
    (tmp_path / "job" / "memory.max").write_text("max\n")
    (group / "memory.max").write_text("3000000\n")
    (group / "memory.current").write_text("2500000\n")
    (group / "memory.stat").write_text("anon 1000000\ninactive_file 700000\n")
    assert free_memory(tmp_path / "membership", tmp_path) == 3000000 - (2500000 - 700000)
    (group / "memory.current").write_text("9900000\n")
    assert free_memory(tmp_path / "membership", tmp_path) == 0
    assert free_memory(tmp_path / "nowhere", tmp_path) > 2**20
