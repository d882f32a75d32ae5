"""The kernel's log: what was there before is known, what comes is told once."""

import os
from pathlib import Path

import pytest

from scaletrain.hardware.kernel_log import KMSG, KernelLog, open_kernel_log

JOURNAL = """#!/bin/sh
case "$*" in
*--follow*) echo new; exec sleep 60 ;;
*) {seen} ;;
esac
"""


def write(path: Path, *numbers: int) -> None:
    with path.open("a") as log:
        for number in numbers:
            log.write(f"6,{number},{1000 * number},-;line {number}\n SUBSYSTEM=pci\n")


def opened(path: Path, after: int | None = None) -> KernelLog:
    log = open_kernel_log(path, after)
    assert log is not None
    return log


def words(log: KernelLog) -> list[str]:
    return [line for line in log.lines() if line.startswith("line")]


def test_only_what_comes_is_told_and_once(tmp_path: Path) -> None:
    path = tmp_path / "kmsg"
    write(path, 5, 6)
    log = opened(path)
    assert (log.origin, log.lines(), log.last_record) == (str(path), [], 6)
    write(path, 7, 8)
    assert words(log) == ["line 7", "line 8"]
    assert log.lines() == []
    log.close()


def test_who_takes_over_goes_on_behind_the_last_record(tmp_path: Path) -> None:
    path = tmp_path / "kmsg"
    write(path, 5, 6, 7)
    log = opened(path, after=5)
    assert words(log) == ["line 6", "line 7"]
    log.close()


def test_a_line_in_two_halves_is_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "kmsg")
    log = opened(tmp_path / "kmsg")
    with (tmp_path / "kmsg").open("w") as end:
        end.write("6,1,1,-;line")
        end.flush()
        assert log.lines() == []
        end.write(" 1\n")
        end.flush()
        assert log.lines() == ["line 1"]
    assert log.lines() == []
    log.close()


def test_the_journal_stands_in_where_it_may_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    script = tmp_path / "journalctl"
    script.write_text(JOURNAL.format(seen="echo old"))
    script.chmod(0o755)
    log = opened(tmp_path / "none")
    assert log.origin == "journal"
    found: list[str] = []
    while not found:
        found = log.lines()
    assert found == ["new"]
    log.close()
    script.write_text(JOURNAL.format(seen="echo 'no permission' >&2"))
    assert open_kernel_log(tmp_path / "none") is None
    script.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert open_kernel_log(tmp_path / "none") is None


@pytest.mark.skipif(not os.access(KMSG, os.R_OK), reason="this user may not read the kernel's log")
def test_the_log_of_this_machine_opens() -> None:
    log = opened(KMSG)
    assert log.last_record is not None
    log.close()
