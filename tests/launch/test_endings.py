"""The end of a rank stands in the run directory, whatever becomes of what it says."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scaletrain.launch.endings import end_at_once, let_go_of_streams, say
from scaletrain.launch.run_dir import RunDirectory
from scaletrain.launch.verdicts import Ending, Verdict, read_verdicts
from scaletrain.ranks import Ranks

ALONE = Ranks(0, 0, 1, 1, "node")


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


def test_what_cannot_be_said_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    with full_stderr(monkeypatch):
        say("to nobody")
        with pytest.raises(OSError):
            sys.stderr.flush()
        let_go_of_streams()
        sys.stderr.flush()  # the interpreter does this last, and would end with a code of its own
