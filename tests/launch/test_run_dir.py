"""A run directory: one living owner, numbered starts, and no other run's model or data."""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from scaletrain.config.load import dump_yaml, load_config
from scaletrain.errors import ConfigError, StorageError
from scaletrain.launch.attempts import RankProcess, launch_of_this_process
from scaletrain.launch.heartbeat import STALE_S, Lease, lease_path, read_lease, refresh_lease
from scaletrain.launch.identity import identity_of
from scaletrain.launch.lease import take_lease
from scaletrain.launch.processes import this_process
from scaletrain.launch.run_dir import RunDirectory
from scaletrain.launch.verdicts import Verdict, verdict_of

OWNER = """
import sys, time
from pathlib import Path
from scaletrain.launch.run_dir import RunDirectory
print(RunDirectory(Path(sys.argv[1])).claim(), flush=True)
time.sleep(60)
"""


@contextmanager
def owner(run_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that owns the run directory."""
    process = subprocess.Popen([sys.executable, "-c", OWNER, str(run_dir)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip().isdigit()
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def foreign(run_dir: Path, **fields: object) -> None:
    """Leaves the lease of an owner on another machine."""
    lease = Lease("node17", "another-boot/pid:[1]", 4711, 1, None, (), time.time())
    lease_path(run_dir).write_text(replace(lease, **fields).to_json())  # type: ignore[arg-type]


def refusal(run_dir: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        RunDirectory(run_dir).claim()
    return str(caught.value)


class TestLease:
    def test_a_living_owner_is_respected_and_named(self, tmp_path: Path) -> None:
        with owner(tmp_path / "run") as other:
            told = refusal(tmp_path / "run")
            assert f"process {other.pid} on {os.uname().nodename}" in told
            assert "another --run_dir" in told
            assert read_lease(tmp_path / "run").pid == other.pid  # type: ignore[union-attr]

    def test_a_killed_owner_is_recognised_at_once(self, tmp_path: Path) -> None:
        with owner(tmp_path) as other:
            other.send_signal(signal.SIGKILL)  # and not waited for: a zombie owns nothing
            time.sleep(0.3)
            run = RunDirectory(tmp_path)
            assert run.claim() == 2
            assert run.displaced is not None and run.displaced.pid == other.pid

    def test_the_number_of_a_dead_process_given_to_another_is_no_owner(self, tmp_path: Path) -> None:
        take_lease(tmp_path)
        lease = read_lease(tmp_path)
        assert lease is not None and lease.pid == os.getpid()
        lease_path(tmp_path).write_text(replace(lease, pid=1, start_ticks=lease.start_ticks).to_json())
        assert take_lease(tmp_path) is not None

    def test_another_machine_lives_as_long_as_its_heart_beats(self, tmp_path: Path) -> None:
        foreign(tmp_path)
        assert "process 4711 on node17" in refusal(tmp_path)
        old = time.time() - STALE_S - 1
        os.utime(lease_path(tmp_path), (old, old))
        assert RunDirectory(tmp_path).claim() == 1

    def test_this_machine_started_anew_has_lost_its_processes(self, tmp_path: Path) -> None:
        foreign(tmp_path, host=os.uname().nodename)
        assert RunDirectory(tmp_path).claim() == 1

    def test_the_heartbeat_is_the_owners_alone(self, tmp_path: Path) -> None:
        take_lease(tmp_path)
        os.utime(lease_path(tmp_path), (1, 1))
        refresh_lease(tmp_path, replace(this_process(), start_ticks=0))
        assert lease_path(tmp_path).stat().st_mtime == 1
        refresh_lease(tmp_path, this_process())
        assert lease_path(tmp_path).stat().st_mtime > 1

    def test_released_it_is_free(self, tmp_path: Path) -> None:
        run = RunDirectory(tmp_path)
        run.claim()
        run.release()
        with owner(tmp_path) as other:
            run.release()  # not ours any more: no effect
            assert read_lease(tmp_path).pid == other.pid  # type: ignore[union-attr]

    def test_an_owner_without_its_launcher_is_waited_for(self, tmp_path: Path) -> None:
        with owner(tmp_path) as other:
            lease = read_lease(tmp_path)
            assert lease is not None
            lease_path(tmp_path).write_text(replace(lease, launchers=((2**22 - 1, 5),)).to_json())
            killer = subprocess.Popen(["sh", "-c", f"sleep 1; kill -9 {other.pid}"])
            assert RunDirectory(tmp_path).claim() == 2
            assert killer.wait() == 0

    def test_of_many_that_start_at_once_one_wins(self, tmp_path: Path) -> None:
        command = [sys.executable, "-c", OWNER, str(tmp_path / "run")]
        crowd = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for _ in range(5)]
        try:
            deadline = time.monotonic() + 30
            while sum(one.poll() is None for one in crowd) > 1 and time.monotonic() < deadline:
                time.sleep(0.05)
            assert [one.poll() is None for one in crowd].count(True) == 1
            numbered = [name for name in os.listdir(tmp_path / "run" / "exit") if name.isdigit()]
            assert numbered == ["1"], "who is refused takes no attempt"
        finally:
            for one in crowd:
                one.kill()
                one.communicate()


class TestAttempts:
    def test_each_start_is_one_more(self, tmp_path: Path) -> None:
        for number in (1, 2, 3):
            run = RunDirectory(tmp_path)
            assert run.claim() == number
            run.release()

    def test_a_rank_is_found_by_its_registration(self, tmp_path: Path) -> None:
        run = RunDirectory(tmp_path)
        run.claim()
        run.release()
        run.join(run.claim(), 4)
        written = json.loads((tmp_path / "exit" / "2" / "4.pid").read_text())
        assert written["pid"] == os.getpid()
        nobody = replace(this_process(), pid=1)
        assert RankProcess(tmp_path, 4, this_process(), nobody).attempt() == 2
        assert RankProcess(tmp_path, 5, this_process(), nobody).attempt() is None
        late = RankProcess(tmp_path, 5, this_process(), launch_of_this_process())
        assert late.attempt() == 2 and late.joined_attempt() is None
        assert RankProcess.from_json(json.loads(json.dumps(late.to_json()))) == late


class TestIdentity:
    @staticmethod
    def start(path: Path, tokenizer: str = "t1", data: str = "d1", **overrides: str) -> list[str]:
        config = load_config(None, {key.replace("__", "."): text for key, text in overrides.items()})
        found = RunDirectory(path).bind(identity_of(config, tokenizer, data))
        return [f"{change.key} {change.old} {change.new}" for change in found]

    def trained(self, path: Path) -> Path:
        run = RunDirectory(path)
        run.claim()
        assert self.start(path) == []
        run.metrics.write_text('{"step": 0}\n')
        return path

    def test_the_same_command_goes_on(self, tmp_path: Path) -> None:
        path = self.trained(tmp_path)
        assert self.start(path) == []

    def test_what_may_change_is_told(self, tmp_path: Path) -> None:
        path = self.trained(tmp_path)
        new = {"train__max_steps": "900", "optim__lr": "0.5", "deepspeed": "configs/ds/zero3.json"}
        assert sorted(self.start(path, **new, train__micro_batch_size="2", eval__every_steps="7")) == [
            "deepspeed configs/ds/zero1.json configs/ds/zero3.json",
            f"eval.every_steps {load_config(None, {}).eval.every_steps} 7",
            f"optim.lr {load_config(None, {}).optim.lr} 0.5",
            f"train.max_steps {load_config(None, {}).train.max_steps} 900",
            f"train.micro_batch_size {load_config(None, {}).train.micro_batch_size} 2",
        ]
        assert self.start(path, **new, train__micro_batch_size="2", eval__every_steps="7") == []

    def test_another_place_of_the_same_data_and_run_is_the_same_run(self, tmp_path: Path) -> None:
        path = self.trained(tmp_path / "here")
        path.rename(tmp_path / "there")
        assert self.start(tmp_path / "there", data__corpus_dir="/elsewhere", run_dir="there") == [
            "data.corpus_dir data /elsewhere"
        ]

    def test_another_run_is_refused_with_every_difference(self, tmp_path: Path) -> None:
        path = self.trained(tmp_path)
        with pytest.raises(ConfigError) as caught:
            self.start(path, "t2", "d2", model__d_model="640", seed="1", data__num_lanes="3", train__max_seq_len="128")
        told = str(caught.value)
        for line in ("tokenizer: t1 there, t2 here", "data: d1", "seed: 1337 there, 1 here", "data.num_lanes: 1"):
            assert line in told
        assert "model.d_model" in told and "train.max_seq_len" in told and "another --run_dir" in told
        assert self.start(path) == [], "a refused start changes nothing"

    def test_a_start_that_trained_nothing_binds_nobody(self, tmp_path: Path) -> None:
        RunDirectory(tmp_path).claim()
        self.start(tmp_path, "t1")
        assert self.start(tmp_path, "t2") == []
        (tmp_path / "checkpoints" / "step_00000010").mkdir()
        with pytest.raises(ConfigError):
            self.start(tmp_path, "t3")

    def test_a_damaged_identity_is_not_taken_for_a_new_run(self, tmp_path: Path) -> None:
        path = self.trained(tmp_path)
        (path / "identity.json").write_text("{")
        with pytest.raises(ConfigError, match="damaged"):
            self.start(path)


def test_what_a_start_runs_with_is_kept(tmp_path: Path) -> None:
    config = load_config(None, {"optim.lr": "3e-4"})
    run = RunDirectory(tmp_path)
    run.claim()
    run.describe(dump_yaml(config))
    assert load_config(run.config, {}) == config
    packages = json.loads((tmp_path / "versions.json").read_text())
    assert packages["torch"] and packages["deepspeed"] and packages["python"]
    assert (tmp_path / "code.diff").read_text().startswith("# ")


class TestNotWritable:
    def test_below_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        told = refusal(tmp_path / "file" / "run")
        assert "cannot be written: Not a directory" in told and "another --run_dir" in told

    def test_where_nothing_can_be_made(self) -> None:
        assert "cannot be written" in refusal(Path("/proc/runs/x"))

    def test_without_permission(self, tmp_path: Path) -> None:
        """Root ignores the mode bits of a folder, so the folder's owner gives root's rights up first."""
        folder = tmp_path / "locked"
        folder.mkdir(mode=0o555)
        tmp_path.chmod(0o755)
        code = (
            "import os, sys\n"
            "from pathlib import Path\n"
            "from scaletrain.errors import ConfigError\n"
            "from scaletrain.launch.run_dir import RunDirectory\n"
            "os.geteuid() == 0 and os.setuid(65534)\n"
            "try:\n"
            "    RunDirectory(Path(sys.argv[1])).claim()\n"
            "except ConfigError as error:\n"
            "    print(error)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(folder / "run")], capture_output=True, text=True, timeout=60
        )
        assert "Permission denied" in done.stdout, done.stderr


def test_a_moved_run_keeps_its_name_and_a_copy_gets_one_of_its_own(tmp_path: Path) -> None:
    def name_of(path: Path) -> str:
        folder = RunDirectory(path)
        folder.claim()
        folder.release()
        return folder.run_id

    first = name_of(tmp_path / "run")
    assert name_of(tmp_path / "run") == first and len(first) == 32
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    copy = name_of(tmp_path / "copy")
    assert copy != first and name_of(tmp_path / "copy") == copy
    (tmp_path / "run").rename(tmp_path / "moved")
    assert name_of(tmp_path / "moved") == first


def test_a_sick_file_system_is_no_mistake_of_the_user(tmp_path: Path) -> None:
    folder = RunDirectory(tmp_path / "run")
    folder.claim()
    folder.release()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(OSError, match="") as full:
            (tmp_path / "file").write_text("x")
        assert full.value.errno == errno.EFBIG
        with pytest.raises(StorageError, match="cannot be written"):
            folder.describe("a: 1\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert verdict_of(StorageError("")) is Verdict.CRASH
