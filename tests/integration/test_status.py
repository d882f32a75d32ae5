"""tools/status.py and tools/compare.py as their users see them: a run under way, killed and complete."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.integration.runs import ENVIRONMENT, ROOT, NewRun, TinyRun, python

STATUS, COMPARE = ROOT / "tools" / "status.py", ROOT / "tools" / "compare.py"


def test_a_run_under_way_and_killed(new_run: NewRun) -> None:
    run = new_run("watched")
    (process,) = run.start_ranks(1, "--train.max_steps", 1_000_000, "--eval.every_steps", 0)
    run.wait_for_step(6, attempt=1)
    facts = json.loads(python(STATUS, "--run_dir", run.run_dir, "--json").stdout)
    assert facts["state"] == "running" and facts["training"]["step"] >= 6
    assert facts["training"]["max_steps"] == 1_000_000 and facts["time_left_s"] > 0 and 0 < facts["goodput"] < 1
    assert facts["checkpoint"]["next_step"] > facts["training"]["step"]
    seen, code = watch(run.run_dir, until=b"time left")
    assert code == 130
    assert (
        seen.index(b"\x1b[?1049h") < seen.index(b"running on") < seen.rindex(b"\x1b[?1049l") < seen.rindex(b"\x1b[?25h")
    )
    os.kill(process.pid, signal.SIGKILL)
    process.wait(timeout=10)

    deadline = time.monotonic() + 60  # its keeper looks every now and then, and then writes the verdict
    while not run.verdicts(1):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    result = python(STATUS, "--run_dir", run.run_dir)
    assert result.returncode == 0 and "\x1b" not in result.stdout
    assert "run: crash" in result.stdout and "signal 9" in result.stdout and "time left" not in result.stdout


def watch(run_dir: Path, until: bytes) -> tuple[bytes, int]:
    """Watches in a terminal until a text appears, then types Ctrl-C."""
    controller, terminal = pty.openpty()
    command = [sys.executable, str(STATUS), "--run_dir", str(run_dir), "--watch"]
    environment = ENVIRONMENT | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    process = subprocess.Popen(
        command,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=environment,
        process_group=0,
        # A shell's background job, as these tests may be, ignores SIGINT, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    os.close(terminal)
    seen, end_s, asked = b"", time.monotonic() + 30, False
    try:
        while time.monotonic() < end_s:
            if select.select([controller], [], [], 0.1)[0]:
                try:
                    seen += os.read(controller, 65536)
                except OSError:  # the other end is closed
                    break
            if until in seen and not asked:
                asked = True
                process.send_signal(signal.SIGINT)
        return seen, process.wait(timeout=30)
    finally:
        process.kill()
        process.wait()
        os.close(controller)


def test_runs_are_compared_by_several_writers_at_once(finished: TinyRun, tmp_path: Path) -> None:
    out = tmp_path / "comparison.md"
    command = (COMPARE, "--runs", finished.folder / "ru*", "--out", out)
    with ThreadPoolExecutor(2) as several:
        results = list(several.map(lambda _: python(*command), range(2)))
    for result in results:
        assert result.returncode == 0, result.stdout
        assert "complete" in result.stdout and f"tensorboard --logdir {finished.folder}" in result.stdout
    assert out.read_text().startswith("# Comparison of 1 runs\n\n| run | step | train loss |")
    assert list(tmp_path.iterdir()) == [out]


def test_mistakes_are_told_without_a_traceback(finished: TinyRun, tmp_path: Path) -> None:
    for command, said in (
        ((STATUS, "--run_dir", tmp_path), "holds no run"),
        ((STATUS, "--run_dir", finished.run_dir, "--watch"), "--watch needs a terminal"),
        ((COMPARE, "--runs", tmp_path / "nothing*"), "matches no folder"),
        ((COMPARE, "--runs", finished.run_dir, "--out", tmp_path / "no/where.md"), "cannot be written"),
    ):
        result = python(*command)
        assert (result.returncode, "Traceback" in result.stdout) == (2, False), result.stdout
        assert said in result.stdout
