"""However a rank or its launcher is ended, a verdict stands in the run directory and nothing lives on."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scaletrain.launch.attempts import RankProcess, register_rank
from scaletrain.launch.events import read_events
from scaletrain.launch.heartbeat import lease_path
from scaletrain.launch.keeper_process import open_stderr
from scaletrain.launch.processes import process_of, this_process
from scaletrain.launch.run_dir import RunDirectory
from scaletrain.launch.siblings import Siblings, mark_trained
from scaletrain.launch.verdicts import Verdict, read_verdict, read_verdicts, write_verdict
from tests.processes import eventually, living

# A rank as the entry point starts one. Its child stands for a DataLoader worker, which ignores signals.
RANK = """
import os, signal, subprocess, sys, time
from pathlib import Path
from scaletrain.launch.keeper import start_keeper
from scaletrain.launch.processes import die_with_launcher
from scaletrain.launch.run_dir import RunDirectory
from scaletrain.launch.verdicts import Verdict, write_verdict

die_with_launcher()
run_dir, behaviour = Path(sys.argv[-2]), sys.argv[-1]
rank = int(os.environ.get("RANK", "0"))
run = RunDirectory(run_dir)
attempt = run.claim() if rank == 0 else None
if attempt:
    run.join(attempt, rank)
if behaviour == "has a child":
    child = ["sh", "-c", "trap '' TERM INT; sleep 90", str(run_dir)]
    subprocess.Popen(child, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
start_keeper(run_dir, rank, grace_s=1.5)

def save(number, frame):
    time.sleep(0.5)
    write_verdict(run_dir, attempt, rank, Verdict.REQUEUE, "saved")
    os._exit(75)

if behaviour == "saves":
    signal.signal(signal.SIGUSR1, save)
if behaviour == "stuck":
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
(run_dir / f"ready-{rank}").touch()
if behaviour == "completes":
    write_verdict(run_dir, attempt, rank, Verdict.COMPLETE, "all steps done")
    sys.exit(0)
if behaviour == "leaves":
    sys.exit(9)
time.sleep(90)
"""

# Launchers that start the next program of the line; the keeper knows launchers by the names of their files.
LAUNCHER = "import subprocess, sys\nsys.exit(subprocess.call([sys.executable, *sys.argv[1:]]))\n"


def process_with(mark: Path, text: str) -> int:
    (pid,) = [pid for pid, arguments in living(mark).items() if text in arguments]
    return pid


class Tree:
    """A run started through two launchers, as deepspeed does it on one machine: runner, launcher, rank."""

    def __init__(self, folder: Path) -> None:
        self.run_dir = folder / "run"
        for name, text in (("deepspeed", LAUNCHER), ("torchrun", LAUNCHER), ("rank.py", RANK)):
            (folder / name).write_text(text)
        self._folder = folder
        self._runner: subprocess.Popen[str] | None = None

    def start(self, behaviour: str, *launchers: str) -> subprocess.Popen[str]:
        line = [str(self._folder / name) for name in (*launchers, "rank.py")]
        command = [sys.executable, *line, str(self.run_dir), behaviour]
        environment = os.environ | {"TMPDIR": str(self._folder)}
        self._runner = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        eventually((self.run_dir / "ready-0").exists, 30, "the rank is ready")
        return self._runner

    def pid_of(self, name: str) -> int:
        return next(pid for pid, arguments in living(self.run_dir).items() if arguments.split()[1].endswith(name))

    def verdict(self) -> dict[str, Any]:
        return eventually(lambda: read_verdicts(self.run_dir, 1).get(0), 40, "a verdict is written")

    def clear(self) -> None:
        for pid in living(self._folder):
            os.kill(pid, signal.SIGKILL)
        if self._runner:
            self._runner.communicate()


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    tree = Tree(tmp_path)
    yield tree
    tree.clear()


def nothing_lives(tree: Tree, within_s: float = 8.0) -> None:
    eventually(lambda: not living(tree.run_dir), within_s, f"all have ended: {living(tree.run_dir)}")


def test_a_rank_killed_without_a_launcher(tree: Tree) -> None:
    runner = tree.start("has a child")
    assert len(list(tree.run_dir.parent.glob("pymp-*"))) == 1  # for what multiprocessing's children listen at
    runner.kill()  # not waited for yet: it stays readable how it ended
    verdict = tree.verdict()
    assert verdict["verdict"] == "crash" and verdict["written_by"] == "keeper"
    assert verdict["reason"] == "ended by signal 9 (SIGKILL) without a verdict"
    assert verdict["pid"] == runner.pid
    assert [event["event"] for event in read_events(tree.run_dir / "events.jsonl")] == ["exit"]
    nothing_lives(tree)
    assert not list(tree.run_dir.parent.glob("pymp-*"))


def test_a_rank_whose_parent_is_quicker_than_its_keeper(tree: Tree) -> None:
    """As srun may be, on a machine that has too much to do."""
    runner = tree.start("has a child")
    keeper = process_with(tree.run_dir, "keeper_process")
    os.kill(keeper, signal.SIGSTOP)
    runner.kill()
    runner.wait()
    os.kill(keeper, signal.SIGCONT)
    told = tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 15)
    assert tree.verdict()["reason"] == (
        "ended by signal 9 (SIGKILL) without a verdict" if told else "ended without a verdict"
    )
    nothing_lives(tree)


def test_what_is_told_in_a_log_is_not_written_over(tmp_path: Path) -> None:
    """A shell's ``2> log`` gives ranks and launcher one place in the file, at which the launcher writes its last."""
    with (tmp_path / "log").open("w") as log:
        log.write("step 5\n")
        log.flush()
        rank = subprocess.Popen(["sleep", "60"], stderr=log)
        try:
            found = process_of(rank.pid)
            assert found is not None
            told = open_stderr(found)
            assert told is not None
            rank.kill()
            os.write(told, b"ended by its keeper\n")
            os.close(told)
        finally:
            rank.kill()
            rank.wait()
        log.write("the launcher ends\n")
    assert (tmp_path / "log").read_text() == "step 5\nended by its keeper\nthe launcher ends\n"


def test_a_rank_that_leaves_without_a_word(tree: Tree) -> None:
    tree.start("leaves")
    assert tree.verdict()["reason"] == "ended by exit code 9 without a verdict"
    nothing_lives(tree)


def test_a_rank_that_has_said_how_it_ended(tree: Tree) -> None:
    tree.start("completes")
    assert tree.verdict()["reason"] == "all steps done"
    nothing_lives(tree)
    assert tree.verdict()["verdict"] == "complete"
    assert read_events(tree.run_dir / "events.jsonl") == []


def test_a_rank_that_waits_for_one_that_has_ended_ends_like_it(tree: Tree) -> None:
    runner = tree.start("sleeps")
    write_verdict(tree.run_dir, 1, 1, Verdict.STOPPED, "SIGINT before the first step")
    verdict = tree.verdict()
    assert verdict["verdict"] == "stopped" and verdict["manner"] in ("signal 2 (SIGINT)", "exit code 1")
    assert "rank 1 had ended before the first step (SIGINT before the first step)" in verdict["reason"]
    runner.wait(timeout=5)
    nothing_lives(tree)


@pytest.mark.parametrize("ended", [Verdict.CRASH, Verdict.COMPLETE])
def test_who_has_trained_or_is_complete_is_not_waited_for(tmp_path: Path, ended: Verdict) -> None:
    attempt = RunDirectory(tmp_path).claim()
    waits = RankProcess(tmp_path, 1, this_process(), this_process())
    early = Siblings(waits, grace_s=0.0)
    write_verdict(tmp_path, attempt, 0, ended, "why")
    assert early.fallen() is None  # nobody knows yet that it belongs to this attempt
    register_rank(tmp_path, attempt, 1)
    fallen = Siblings(waits, grace_s=0.0).fallen()
    assert (fallen.verdict if fallen else None) == (ended if ended is Verdict.CRASH else None)
    assert Siblings(waits, grace_s=60.0).fallen() is None
    mark_trained(tmp_path, attempt)
    assert Siblings(waits, grace_s=0.0).fallen() is None


def test_a_launcher_killed_takes_its_rank_along(tree: Tree) -> None:
    tree.start("stuck", "torchrun")
    launcher = tree.pid_of("torchrun")
    os.kill(launcher, signal.SIGKILL)
    verdict = tree.verdict()
    assert verdict["verdict"] == "crash"
    assert f"its launcher (process {launcher}) ended" in verdict["reason"]
    nothing_lives(tree)


def test_the_command_killed_lets_the_rank_save_and_ends_the_launcher(tree: Tree) -> None:
    runner = tree.start("saves", "deepspeed", "torchrun")
    runner.kill()
    assert tree.verdict()["verdict"] == "requeue"
    nothing_lives(tree, within_s=15)


def test_the_command_killed_ends_a_stuck_rank_after_its_grace(tree: Tree) -> None:
    runner = tree.start("stuck", "deepspeed", "torchrun")
    runner.kill()
    verdict = tree.verdict()
    assert f"its launcher (process {runner.pid}) ended" in verdict["reason"]
    nothing_lives(tree, within_s=15)


def test_a_keeper_is_outside_of_the_tree_and_heeds_no_signal(tree: Tree) -> None:
    runner = tree.start("sleeps")
    keeper = process_with(tree.run_dir, "keeper_process")
    before = lease_path(tree.run_dir).stat().st_mtime
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT):
        os.kill(keeper, number)
    time.sleep(0.3)
    assert keeper in living(tree.run_dir)
    parent, group, session = Path(f"/proc/{keeper}/stat").read_text().rpartition(")")[2].split()[1:4]
    assert int(parent) != runner.pid
    assert int(group) != os.getpgid(runner.pid) and int(session) != os.getsid(runner.pid)
    opened = {os.readlink(entry) for entry in Path(f"/proc/{keeper}/fd").iterdir()}
    assert not any(name.startswith("pipe:") for name in opened), "whoever reads the run's output sees its end"
    assert lease_path(tree.run_dir).stat().st_mtime >= before
    runner.kill()
    assert tree.verdict()["verdict"] == "crash"
    nothing_lives(tree)


def test_a_deleted_run_directory_does_not_come_back(tree: Tree) -> None:
    runner = tree.start("sleeps")
    keeper = process_with(tree.run_dir, "keeper_process")
    tree.run_dir.rename(tree.run_dir.with_name("gone"))
    runner.kill()
    eventually(lambda: keeper not in living(tree.run_dir), 10, "the keeper ends")
    assert not tree.run_dir.exists()


@pytest.mark.slow
def test_nothing_of_a_deepspeed_run_lives_on_after_its_command_is_killed(tree: Tree, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    deepspeed = [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", "2", "--master_port", str(port)]
    output = (tmp_path / "output").open("w")
    runner = subprocess.Popen(
        [*deepspeed, str(tmp_path / "rank.py"), str(tree.run_dir), "has a child"],
        env={**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
        stdout=output,
        stderr=subprocess.STDOUT,
    )
    try:
        for rank in (0, 1):
            eventually((tree.run_dir / f"ready-{rank}").exists, 90, (tmp_path / "output").read_text())
        # runner, launcher, and for each of two ranks itself, its keeper, its child and the child's own
        assert len(living(tree.run_dir)) >= 8
        runner.kill()
        eventually(lambda: len(read_verdicts(tree.run_dir, 1)) == 2, 15, "both ranks have a verdict")
        for verdict in read_verdicts(tree.run_dir, 1).values():
            assert verdict["verdict"] == "crash"
            assert f"its launcher (process {runner.pid}) ended" in verdict["reason"]
        nothing_lives(tree, within_s=15)
    finally:
        runner.kill()
        runner.wait()
        output.close()
        for pid in living(tmp_path):
            os.kill(pid, signal.SIGKILL)


def test_verdicts_without_an_attempt_stand_apart(tmp_path: Path) -> None:
    """A second rank whose launch has claimed nothing: no attempt is made up for it."""
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from scaletrain.launch.keeper import start_keeper\n"
        "start_keeper(Path(sys.argv[1]), 1)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    dead = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    try:
        files = eventually(lambda: list((tmp_path / "exit" / "unclaimed").glob("*-1.json")), 20, "a verdict is written")
    finally:
        dead.wait()
    verdict = read_verdict(files[0])
    assert verdict is not None and verdict["attempt"] is None and verdict["manner"] == "signal 9 (SIGKILL)"
