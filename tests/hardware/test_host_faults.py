"""Faults that a test can cause on this machine: they are read from the real kernel."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from scaletrain.hardware.host_health import HostReader, Roots

ROOT = Path(__file__).parents[2]
CGROUPS = Path("/sys/fs/cgroup")

# Reads the host whenever it is told to, in namespaces of its own.
_READ = """
import json, sys
from pathlib import Path
from scaletrain.hardware.host_health import HostReader
reader = HostReader({name: Path(path) for name, path in json.loads(sys.argv[1]).items()})
for _ in sys.stdin:
    print(json.dumps(reader.read().signals()), flush=True)
"""
# A file system in user space, of which nobody answers for the user space.
SILENT = """
import ctypes, os, sys
device = os.open("/dev/fuse", os.O_RDWR)
os.set_inheritable(device, True)
options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
kind = os.environ.get("SILENT_KIND", "fuse").encode()
if ctypes.CDLL(None).mount(b"silent", sys.argv[1].encode(), kind, 0, options):
    sys.exit(77)
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


class Asked:
    """A process that reads the host when it is asked."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process

    def signals(self) -> dict[str, float]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the reader has ended"
        found: dict[str, float] = json.loads(line)
        return found

    def run(self, command: str) -> None:
        """Runs a command in the same namespaces."""
        inside = ["nsenter", "--target", str(self.process.pid), "--net", "--mount"]
        subprocess.run([*inside, "sh", "-ec", command], check=True, timeout=30)


@contextmanager
def reader_behind(prepare: str, folders: dict[str, Path], *through: str) -> Iterator[Asked]:
    """A reader in namespaces that end with it, in which a shell has prepared something."""
    alone = ["unshare", "--net", "--mount"]
    if subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("only root can make network and mount namespaces (unshare --net --mount)")
    reading = [*through, "-c", _READ, json.dumps({name: str(path) for name, path in folders.items()})]
    command = [*alone, "sh", "-ec", f'{prepare}\nexec "$@"', "sh", sys.executable, *reading]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    try:
        yield Asked(process)
    finally:
        process.kill()
        process.wait(timeout=30)


def test_a_link_that_goes_down_and_an_interface_that_goes_away() -> None:
    cable = "\n".join(
        (
            "mount -t sysfs sysfs /sys",
            "ip link add eth0 type veth peer name far",
            "ip link set far up",
            "ip link set eth0 up",
            "ip address add 10.99.0.1/24 dev eth0",
        )
    )
    with reader_behind(cable, {}) as host:
        before = host.signals()
        host.run("ip link set far down")
        cut = host.signals()
        host.run("ip link set far up")
        back = host.signals()
        host.run("ip link delete eth0")
        gone = host.signals()
    assert [one["host.nic.eth0.carrier_lost"] for one in (before, cut, back, gone)] == [0, 1, 0, 1]
    changes = [one["host.nic.eth0.carrier_changes"] - before["host.nic.eth0.carrier_changes"] for one in (cut, back)]
    assert changes == [1, 2] and "host.nic.eth0.carrier_changes" not in gone


def test_a_disk_that_fills_up_and_one_that_becomes_read_only(tmp_path: Path) -> None:
    with reader_behind(f"mount -t tmpfs -o size=4m,nr_inodes=20 tmpfs {tmp_path}", {"run_dir": tmp_path}) as host:
        before = host.signals()
        host.run(f"head -c 3m /dev/zero >{tmp_path}/file")
        full = host.signals()
        host.run(f"touch {tmp_path}/1 {tmp_path}/2; mount -o remount,ro {tmp_path}")
        read_only = host.signals()
    free_gib = [one["host.folder.run_dir.free_gib"] for one in (before, full)]
    assert free_gib == [4 / 1024, 1 / 1024] and full["host.folder.run_dir.used_share"] == 0.75
    assert full["host.folder.run_dir.free_inodes"] - read_only["host.folder.run_dir.free_inodes"] == 2
    assert [one["host.folder.run_dir.read_only"] for one in (before, full, read_only)] == [0, 0, 1]
    assert read_only["host.folder.run_dir.waited_s"] == 0


def test_a_file_server_that_never_answers_is_waited_for_once(tmp_path: Path) -> None:
    silent = tmp_path / "silent"
    silent.mkdir()
    folders = {"run_dir": silent, "tmp": tmp_path}
    with reader_behind("[ -r /dev/fuse ]", folders, "-c", SILENT, str(silent)) as host:
        first = host.signals()
        start_s = time.monotonic()
        later = host.signals()
        took_s = time.monotonic() - start_s
        threads = len(os.listdir(f"/proc/{host.process.pid}/task"))
        for _ in range(3):
            later = host.signals()
        assert len(os.listdir(f"/proc/{host.process.pid}/task")) == threads
    assert first["host.folder.tmp.free_gib"] > 0 and "host.folder.run_dir.free_gib" not in first
    assert later["host.folder.run_dir.waited_s"] > first["host.folder.run_dir.waited_s"] >= 0.5
    assert took_s < 0.5  # what did not answer is not waited for again


def test_a_folder_that_is_not_there_has_failed(tmp_path: Path) -> None:
    signals = HostReader({"run_dir": tmp_path / "none"}).read().signals()
    assert signals["host.folder.run_dir.failed"] == 1 and "host.folder.run_dir.free_gib" not in signals


@contextmanager
def group(controller: str, limits: dict[str, str], limits_2: dict[str, str]) -> Iterator[tuple[Path, str]]:
    """A control group of this test's own: its folder, and its line in a process's list of groups."""
    name = f"scaletrain-test-{os.getpid()}"
    is_2 = controller in (CGROUPS / "cgroup.subtree_control").read_text().split() if _has_version_2() else False
    folder = CGROUPS / name if is_2 else CGROUPS / controller / name
    try:
        folder.mkdir()
        for file, value in (limits_2 if is_2 else limits).items():
            (folder / file).write_text(value)
    except OSError as error:
        pytest.skip(f"no control group can be made: {error}")
    try:
        yield folder, f"0::/{name}\n" if is_2 else f"4:{controller}:/{name}\n"
    finally:
        deadline_s = time.monotonic() + 20
        while folder.exists() and time.monotonic() < deadline_s:
            try:
                folder.rmdir()
            except OSError:  # the process in it is ending still
                time.sleep(0.05)


def _has_version_2() -> bool:
    return (CGROUPS / "cgroup.subtree_control").exists()


def run_inside(folder: Path, code: str) -> int:
    """Exit status of Python code that runs in a control group."""
    join = f"import os; open({str(folder / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))\n"
    return subprocess.run([sys.executable, "-c", join + code], timeout=60).returncode


def roots_of(tmp_path: Path, membership: str) -> Roots:
    """The real kernel, as a process in another control group sees it."""
    proc = tmp_path / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "self/cgroup").write_text(membership)
    (proc / "vmstat").symlink_to("/proc/vmstat")
    return Roots(proc)


def test_a_process_that_is_killed_for_memory(tmp_path: Path) -> None:
    limits = {"memory.limit_in_bytes": str(48 << 20)}
    with group("memory", limits, {"memory.max": str(48 << 20), "memory.swap.max": "0"}) as (folder, membership):
        reader = HostReader(roots=roots_of(tmp_path, membership))
        before = reader.read().signals()
        status = run_inside(folder, "block = bytearray(200 << 20)")
        after = reader.read().signals()
    assert status == -signal.SIGKILL
    assert after["host.group_oom_kills"] - before["host.group_oom_kills"] == 1
    assert after["host.oom_kills"] - before["host.oom_kills"] >= 1
    assert 0 < before["host.memory.free_gib"] <= 48 / 1024


def test_a_process_that_uses_up_its_quota(tmp_path: Path) -> None:
    # So little that it is used up at once, also where the machine is busy with other things.
    limits = {"cpu.cfs_period_us": "50000", "cpu.cfs_quota_us": "1000"}
    with group("cpu", limits, {"cpu.max": "1000 50000"}) as (folder, membership):
        reader = HostReader(roots=roots_of(tmp_path, membership))
        before = reader.read().signals()
        run_inside(folder, "import time\nend = time.process_time() + 0.008\nwhile time.process_time() < end: pass")
        after = reader.read().signals()
    assert after["host.cpu.throttled_periods"] - before["host.cpu.throttled_periods"] >= 3
    assert after["host.cpu.throttled_s"] - before["host.cpu.throttled_s"] > 0.03
