"""All that a host tells is read and named; what it does not tell is left out, and never 0."""

import time
from pathlib import Path

import pytest

from scaletrain.hardware.host_clock import read_clock
from scaletrain.hardware.host_health import HostReader, read_host
from scaletrain.hardware.kernel_messages import kinds_of
from tests.hardware.kernel_trees import CALM, PRESSURE, ROUTES, interface, net_dev, plant, port, read

NODE = {
    "proc/meminfo": "MemTotal:       20971520 kB\nMemAvailable:    2097152 kB\n",
    "proc/pressure/memory": CALM,
    "proc/pressure/io": PRESSURE,
    "proc/vmstat": "nr_free_pages 100\noom_kill 7\n",
    "proc/self/cgroup": "0::/job/step\n",
    "proc/self/net/dev": net_dev("eth0", "lo"),
    "proc/self/net/route": ROUTES,
    "cgroup/job/memory.max": "1073741824\n",
    "cgroup/job/memory.current": "536870912\n",
    "cgroup/job/memory.stat": "anon 1\n",
    "cgroup/job/memory.events": "low 0\nhigh 0\nmax 9\noom 3\noom_kill 2\noom_group_kill 0\n",
    "cgroup/job/memory.pressure": PRESSURE,
    "cgroup/job/cpu.stat": "usage_usec 9\nnr_periods 8\nnr_throttled 3\nthrottled_usec 1500000\n",
    "cgroup/job/step/memory.max": "max\n",
    "cgroup/job/step/memory.events": "oom_kill 1\n",
    "cgroup/job/step/cpu.stat": "nr_throttled 1\nthrottled_usec 500000\n",
    "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "4\n",
    "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count": "6\n",
    "sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count": "5\n",
    "sys/devices/system/cpu/cpu1/thermal_throttle/package_throttle_count": "6\n",
    "sys/devices/system/edac/mc/mc0/ce_count": "12\n",
    "sys/devices/system/edac/mc/mc0/ue_count": "1\n",
    "sys/block/sda/device/ioerr_cnt": "0x1a\n",
    "sys/block/sda/device/iotmo_cnt": "0x2\n",
    "sys/block/sda/device/state": "running\n",
    "sys/block/nvme0n1/device/state": "dead\n",
    "sys/block/loop0/size": "0\n",
    "sys/fs/ext4/sda1/errors_count": "3\n",
    "sys/fs/ext4/features/lazy_itable_init": "supported\n",
    **interface("eth0", speed="100000\n"),
    **interface("lo", type="772\n"),
    **port("mlx5_0"),
    **port("mlx5_1", state="1: DOWN\n"),
}
EXPECTED = {
    "host.memory.free_gib": 0.5,
    "host.memory.used_share": 0.9,
    "host.memory.stalled_some": 0.255,
    "host.memory.stalled_full": 0.1225,
    "host.memory.stalled_full_s": 2.5,
    "host.oom_kills": 7,
    "host.group_oom_kills": 2,
    "host.storage.stalled_some": 0.255,
    "host.storage.stalled_full": 0.1225,
    "host.storage.stalled_full_s": 2.5,
    "host.cpu.throttled_s": 2.0,
    "host.cpu.throttled_periods": 4,
    "host.cpu.core_throttles": 9,
    "host.cpu.package_throttles": 6,
    "host.disk.sda.errors": 26,
    "host.disk.sda.timeouts": 2,
    "host.disk.sda.given_up": 0,
    "host.disk.nvme0n1.given_up": 1,
    "host.file_system.sda1.errors": 3,
    "host.nic.eth0.carrier_lost": 0,
    "host.nic.eth0.carrier_changes": 2,
    "host.nic.eth0.speed_mbit_per_s": 100000,
    "host.nic.eth0.slowed_share": 0,
    "host.nic.eth0.rx_errors": 1,
    "host.nic.eth0.tx_errors": 2,
    "host.nic.eth0.rx_dropped": 3,
    "host.nic.eth0.tx_dropped": 4,
    "host.ib.mlx5_0.1.inactive": 0,
    "host.ib.mlx5_0.1.rate_gbit_per_s": 400,
    "host.ib.mlx5_0.1.slowed_share": 0,
    "host.ib.mlx5_0.1.symbol_error": 5,
    "host.ib.mlx5_0.1.link_downed": 1,
    "host.ib.mlx5_0.1.port_rcv_errors": 0,
    "host.edac.mc0.corrected": 12,
    "host.edac.mc0.uncorrected": 1,
}


def without_clock(signals: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in signals.items() if not name.startswith("host.clock")}


def test_every_signal_of_a_node(tmp_path: Path) -> None:
    assert without_clock(read(tmp_path, NODE).signals()) == EXPECTED


@pytest.mark.parametrize("left_out", sorted(NODE))
def test_what_a_missing_file_would_tell_is_left_out_and_not_0(tmp_path: Path, left_out: str) -> None:
    files = {name: text for name, text in NODE.items() if name != left_out}
    found = without_clock(read(tmp_path, files).signals())
    assert found.keys() <= EXPECTED.keys()
    assert all(value for name, value in found.items() if value != EXPECTED[name])


def test_a_host_that_tells_nothing_has_no_signals(tmp_path: Path) -> None:
    reading = read(tmp_path, {"proc/version": "Linux\n"})
    assert without_clock(reading.signals()) == {}
    assert reading.memory.oom_kills is None and reading.processors.throttled_s is None


def test_files_that_hold_no_numbers_are_not_told(tmp_path: Path) -> None:
    broken = {name: "\n" if "class/net" not in name else text for name, text in NODE.items()}
    assert {name for name in without_clock(read(tmp_path, broken).signals()) if "nic" not in name} == set()


def test_kills_of_other_jobs_are_not_those_of_the_own_group(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/slice/job/step/task\n",
        "cgroup/slice/memory.events": "oom_kill 40\n",
        "cgroup/slice/job/memory.max": "1000\n",
        "cgroup/slice/job/memory.events": "oom_kill 4\n",
        "cgroup/slice/job/step/task/memory.events": "oom_kill 1\n",
    }
    assert read(tmp_path, files).memory.group_oom_kills == 4


def test_version_1_counts_kills_and_throttling_in_each_group_alone(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "4:memory:/job/step\n2:cpu,cpuacct:/job\n0::/\n",
        "cgroup/memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 40\n",
        "cgroup/memory/job/memory.limit_in_bytes": "1000\n",
        "cgroup/memory/job/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
        "cgroup/memory/job/step/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
        "cgroup/cpu,cpuacct/job/cpu.stat": "nr_periods 9\nnr_throttled 5\nthrottled_time 2500000000\n",
        "cgroup/unified/memory.pressure": PRESSURE,
    }
    reading = read(tmp_path, files)
    assert reading.memory.group_oom_kills == 3
    assert (reading.processors.throttled_s, reading.processors.throttled_periods) == (2.5, 5)
    assert reading.memory.stalls.full == 0.1225


def test_threads_of_a_core_share_a_counter_of_heat(tmp_path: Path) -> None:
    files = {}
    for cpu in range(8):
        folder = f"sys/devices/system/cpu/cpu{cpu}"
        files[f"{folder}/topology/thread_siblings_list"] = f"{cpu % 4},{cpu % 4 + 4}\n"
        files[f"{folder}/topology/physical_package_id"] = f"{cpu % 4 // 2}\n"
        files[f"{folder}/thermal_throttle/core_throttle_count"] = f"{cpu % 4 + 1}\n"
        files[f"{folder}/thermal_throttle/package_throttle_count"] = f"{cpu % 4 // 2 + 20}\n"
    processors = read(tmp_path, files).processors
    assert (processors.core_throttles, processors.package_throttles) == (1 + 2 + 3 + 4, 21)


@pytest.mark.parametrize(
    ("name", "more", "is_watched"),
    [
        ("eth0", {}, True),  # the interface of a container: no device, but the way out
        ("eth1", {}, False),  # a test's or a container's, without a route
        ("eth1", {"device/vendor": "0x15b3\n"}, True),
        ("eth1", {"device/vendor": "0x15b3\n", "carrier": "0\n"}, False),  # nobody has plugged it in
        ("eth1", {"device/vendor": "0x15b3\n", "flags": "0x1002\n"}, False),  # switched off
        ("bond0", {"bonding/mode": "802.3ad 4\n"}, True),
        ("docker0", {"bridge/stp_state": "0\n"}, False),
        ("cali1", {}, False),  # the host's end of a container's
        ("lo", {"type": "772\n", "device/vendor": "0x0\n"}, False),
    ],
)
def test_interfaces_are_watched_that_a_training_can_need(
    tmp_path: Path, name: str, more: dict[str, str], is_watched: bool
) -> None:
    files = {"proc/self/net/route": ROUTES, "proc/self/net/dev": net_dev(name), **interface(name, **more)}
    assert [one.name for one in read(tmp_path, files).interfaces] == ([name] if is_watched else [])


def test_interfaces_of_another_namespace_are_not_told(tmp_path: Path) -> None:
    files = {"proc/self/net/route": ROUTES, "proc/self/net/dev": net_dev("eth0", "lo"), **interface("eth0")}
    assert read(tmp_path, files).interfaces == ()


def test_a_port_that_goes_down_stays_watched(tmp_path: Path) -> None:
    reader = HostReader(roots=plant(tmp_path, port("mlx5_0")))
    plant(tmp_path, port("mlx5_0", state="2: INIT\n", rate="100 Gb/sec (1X NDR)\n"))
    found = reader.read().signals()
    names = ("inactive", "rate_gbit_per_s", "slowed_share")
    assert [found[f"host.ib.mlx5_0.1.{name}"] for name in names] == [1, 100, 0.75]


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("io_errors", "blk_update_request: I/O error, dev sda, sector 1953 op 0x0:(READ) flags 0x0 phys_seg 1"),
        ("io_errors", "Buffer I/O error on dev sdb1, logical block 0, async page read"),
        ("io_errors", "nvme nvme0: I/O 1 QID 0 timeout, reset controller"),
        ("io_errors", "sd 0:0:0:0: [sda] tag#0 Sense Key : Medium Error [current]"),
        (
            "file_system_errors",
            "EXT4-fs error (device sda1): ext4_find_entry:1455: inode #2: comm ls: reading directory",
        ),
        ("file_system_errors", "EXT4-fs (sda1): Remounting filesystem read-only"),
        ("file_system_errors", "XFS (dm-1): Corruption of in-memory data detected.  Shutting down filesystem"),
        ("file_system_errors", "BTRFS info (device sdb state EA): forced readonly"),
        ("server_silences", "nfs: server storage1 not responding, still trying"),
        (
            "server_silences",
            "Lustre: a-OST0001-osc-ffff: Connection to a-OST0001 (at 192.168.14.178@tcp) was lost; in progress "
            "operations using this service will wait for recovery to complete",
        ),
        ("machine_checks", "mce: [Hardware Error]: CPU 2: Machine Check: 0 Bank 3: cc5eb2c000100135"),
    ],
)
def test_messages_of_the_kernel_are_counted_by_kind(kind: str, line: str) -> None:
    assert kinds_of(line) == [kind]


@pytest.mark.parametrize(
    "line",
    [
        "EXT4-fs (vda): mounted filesystem 0000-00 r/w without journal. Quota mode: none.",
        "nfs: server storage1 OK",
        "XFS (sda1): Ending clean mount",
        "nvme nvme0: 8/0/0 default/read/poll queues",
        "Lustre: a-OST0001-osc-ffff: Connection restored to 192.168.14.178@tcp",
    ],
)
def test_other_messages_count_for_nothing(line: str) -> None:
    assert kinds_of(line) == []


def test_messages_add_up_over_readings(tmp_path: Path) -> None:
    lines = iter([["nfs: server a not responding, still trying"] * 2, [], ["nfs: server b not responding, timed out"]])
    reader = HostReader(kernel_log=lambda: next(lines), roots=plant(tmp_path, {"proc/version": ""}))
    assert [reader.read().signals()["host.kernel.server_silences"] for _ in range(3)] == [2, 2, 3]
    assert "host.kernel.server_silences" not in read_host({}, plant(tmp_path, {})).signals()


def test_the_clock_tells_that_it_was_set() -> None:
    first = read_clock()
    time.sleep(0.2)
    # A machine that was started a minute later, by the clock, is one whose clock was set.
    assert read_clock(first.boot_s).set_by_s < 1 < 59 < read_clock(first.boot_s - 60).set_by_s < 61
    assert first.is_synchronized in (True, False, None)
    assert (
        first.max_error_s is None or 0 <= first.max_error_s < 16.1
    )  # from there on the kernel calls it unsynchronized
