"""The end of a rank stands in the run directory, whatever becomes of what it says."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scaletrain.launch.endings import end_at_once, let_go_of_streams, say
from scaletrain.launch.events import read_events
from scaletrain.launch.run_dir import RunDirectory
from scaletrain.launch.verdicts import Ending, Verdict, read_verdicts
from scaletrain.ranks import Ranks

ALONE = Ranks(0, 0, 1, 1, "node")

# A rank that prints in each of the ways there are.
PRINTS = """
import logging, os, subprocess, sys
from scaletrain import log
from scaletrain.launch.endings import let_go_of_streams, say
from scaletrain.ranks import Ranks

ranks = Ranks(int(sys.argv[1]), 0, 2, 2, "node")
log.configure(ranks)
logging.warning("before")
log.redirect(ranks, os.environ)
print("by print")
logging.warning("by logging")
say("error: by say")
os.write(1, b"by C\\n")
subprocess.run([sys.executable, "-c", "import sys; print('by a child', file=sys.stderr)"])
let_go_of_streams()
"""


def printed(rank: int, folder: object, **streams: object) -> tuple[str, str]:
    """What the rank printed that was not sent elsewhere."""
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    environment = os.environ | {"SCALETRAIN_LOG_DIR": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", PRINTS, str(rank)],
        cwd=Path(__file__).parents[2],
        env=environment,
        text=True,
        timeout=60,
        **given,  # type: ignore[call-overload]
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@contextlib.contextmanager
def full_stderr(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Standard error on a disk without room."""
    full = open("/dev/full", "w")  # noqa: SIM115 - as the standard streams, it is open for good
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", full)
        yield
        let_go_of_streams()
    full.close()


def test_the_verdict_stands_though_nothing_can_be_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    folder = RunDirectory(tmp_path)
    attempt = folder.claim()
    with full_stderr(monkeypatch):
        end_at_once(folder, attempt, ALONE, Ending(Verdict.STOPPED, "SIGINT came again"))
    assert codes == [130]
    assert read_verdicts(tmp_path, attempt)[0]["verdict"] == "stopped"
    assert not (tmp_path / "lease.json").exists()


def test_why_it_ends_at_once_stands_in_the_diary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "_exit", lambda code: None)
    folder = RunDirectory(tmp_path)
    attempt = folder.claim()
    end_at_once(folder, attempt, ALONE, Ending(Verdict.SICK_NODE, "GPU 1 is lost", ("n1",)), event="abort")
    abort, end = read_events(folder.events)[-2:]
    assert (abort["event"], abort["reason"], abort["hosts"]) == ("abort", "GPU 1 is lost", ["n1"])
    assert (end["event"], end["verdict"]) == ("exit", "sick_node")


def test_what_cannot_be_said_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    with full_stderr(monkeypatch):
        say("to nobody")
        with pytest.raises(OSError):
            sys.stderr.flush()
        let_go_of_streams()
        sys.stderr.flush()  # the interpreter does this last, and would end with a code of its own


ALL = ("by print", "by logging", "error: by say", "by C", "by a child")


def test_a_rank_has_a_log_of_its_own_and_the_first_is_seen_in_the_jobs(tmp_path: Path) -> None:
    for _ in range(2):
        out, err = printed(0, tmp_path / "logs")
        assert out == "" and "before" in err
        assert [words for words in ALL if words in err] == ["by logging", "error: by say"]
        out, err = printed(1, tmp_path / "logs")
        assert out == "" and [words for words in ALL if words in err] == []
    for rank in (0, 1):
        told = (tmp_path / "logs" / f"rank-{rank:05d}.log").read_text()
        assert [told.count(words) for words in ALL] == [2] * len(ALL), told  # the second start adds its own


def test_a_job_log_on_a_full_disk_costs_nothing_of_the_ranks_own(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        printed(0, tmp_path / "logs", stderr=full)
    told = (tmp_path / "logs" / "rank-00000.log").read_text()
    assert [told.count(words) for words in ALL] == [1] * len(ALL), told


def test_without_a_folder_that_can_be_written_a_rank_prints_as_before(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    out, err = printed(0, tmp_path / "file")
    assert "no log of its own for rank 0" in err and str(tmp_path / "file") in err
    assert [words for words in ALL if words in out + err] == list(ALL)
