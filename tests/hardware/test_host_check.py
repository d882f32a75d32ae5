"""The check of a host before a job, on folders of this machine and on files as kernels write them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scaletrain.hardware.host_check import check_host, folders_to_ask
from scaletrain.hardware.host_health import HostReader
from scaletrain.hardware.rules import load_host_rules
from tests.hardware.kernel_trees import plant
from tests.hardware.test_host_faults import SILENT

RULES = load_host_rules()
FREE = "MemTotal: 1000 kB\nMemFree: {free} kB\nMemAvailable: {free} kB\n"


def test_a_sound_host_is_one_finding(tmp_path: Path) -> None:
    roots = plant(tmp_path, {"proc/meminfo": FREE.format(free=500)})
    (found,) = check_host(HostReader(roots=roots), RULES, 10.0)
    assert (found.check, found.status) == ("host", "ok")
    assert found.figures["memory.used_share"] == 0.5


def test_a_fault_is_told_by_its_rule_once_it_was_seen_often_enough(tmp_path: Path) -> None:
    roots = plant(tmp_path, {"proc/meminfo": FREE.format(free=20)})
    host, found = check_host(HostReader(roots=roots), RULES, 30.0)
    assert (found.check, found.status) == ("host_memory_full", "warn")
    # Whoever draws the figures sees them also when it matters.
    assert host.status == "ok" and host.figures["memory.used_share"] == 0.98
    assert "host.memory.used_share" in found.detail and "not long or often" not in found.detail


def test_a_fault_that_there_was_no_time_for_is_a_warning(tmp_path: Path) -> None:
    roots = plant(tmp_path, {"proc/meminfo": FREE.format(free=20)})
    _, found = check_host(HostReader(roots=roots), RULES, 0.0)
    assert (found.check, found.status) == ("host_memory_full", "warn")
    assert "not long or often enough" in found.detail


def test_a_folder_that_is_gone_drains_the_node(tmp_path: Path) -> None:
    _, found = check_host(HostReader({"data": tmp_path / "gone"}, roots=plant(tmp_path, {})), RULES, 30.0)
    assert (found.check, found.status) == ("host_folder_failed", "fail")


def test_what_servers_have_mounted_is_asked(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/vda / ext4 rw 0 0\nnas:/home /home nfs4 rw,hard 0 0\nmds@o2ib:/w /my\\040work lustre rw 0 0\n"
        "sshfs /home/me/far fuse.sshfs rw 0 0\ntmpfs /run tmpfs rw 0 0\n"
    )
    folders = folders_to_ask(mounts)
    assert folders.keys() == {"tmp", "shm", "/home", "/my work"}
    assert folders["/my work"] == Path("/my work")


@pytest.mark.parametrize(("name", "is_judged"), [("data", True), ("", False)])
def test_a_server_may_be_mounted_for_reading(tmp_path: Path, name: str, is_judged: bool) -> None:
    """An own folder may not: a job writes there."""

    def ask(path: Path) -> os.statvfs_result:
        real = list(os.statvfs(path))
        real[8] |= os.ST_RDONLY
        return os.statvfs_result(real)

    reader = HostReader({name or str(tmp_path): tmp_path}, roots=plant(tmp_path, {}), ask=ask)
    found = check_host(reader, RULES, 30.0)[-1]
    assert found.check == ("host_folder_read_only" if is_judged else "host")


def test_a_file_server_that_never_answers_fails_the_node_in_time(tmp_path: Path) -> None:
    if not os.access("/dev/fuse", os.R_OK) or shutil.which("unshare") is None or os.geteuid():
        pytest.skip("needs root, unshare and /dev/fuse")
    served = tmp_path / "served"
    served.mkdir()
    done = subprocess.run(
        ["unshare", "--mount", sys.executable, "-c", SILENT, str(served), "-m", "scaletrain.hardware.host_check", "2"],
        env=os.environ | {"SILENT_KIND": "fuse.glusterfs"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    (found,) = [one for one in json.loads(done.stdout) if one["check"] == f"folder {served}"]
    assert (found["status"], "no answer within 2 s" in found["detail"]) == ("fail", True)
