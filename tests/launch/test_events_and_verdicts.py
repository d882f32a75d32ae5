"""The run's diary and its end, as files that survive a kill at any moment."""

import errno
import json
import multiprocessing
import os
from pathlib import Path

import pytest

from scaletrain.errors import CheckpointError, ConfigError, DataError, HealthError
from scaletrain.launch.events import append_event, read_events
from scaletrain.launch.verdicts import (
    EXIT_CODES,
    Verdict,
    read_verdict,
    read_verdicts,
    verdict_of,
    verdict_path,
    write_verdict,
)


def test_events_are_kept_in_order_with_their_fields(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    append_event(file, "start", attempt=1, place=Path("/x"))
    append_event(file, "save", step=10)
    events = read_events(file)
    assert [event["event"] for event in events] == ["start", "save"]
    assert events[0]["place"] == "/x" and events[1]["step"] == 10
    assert events[0]["time_s"] <= events[1]["time_s"]


def test_a_torn_line_costs_itself_only(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    append_event(file, "start")
    with file.open("a") as torn:
        torn.write('{"time_s": 17')
    assert [event["event"] for event in read_events(file)] == ["start"]
    append_event(file, "resume")
    assert [event["event"] for event in read_events(file)] == ["start", "resume"]


def test_no_file_is_no_event(tmp_path: Path) -> None:
    assert read_events(tmp_path / "events.jsonl") == []


def _append_many(file: Path, name: str) -> None:
    for number in range(200):
        append_event(file, name, number=number, padding="x" * 300)


def test_processes_that_share_the_file_lose_nothing(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_append_many, args=(file, name)) for name in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    for name in "ab":
        assert [event["number"] for event in read_events(file) if event["event"] == name] == list(range(200))


def test_the_first_verdict_stands(tmp_path: Path) -> None:
    write_verdict(tmp_path, 3, 1, Verdict.REQUEUE, "asked by SIGTERM", step=7)
    write_verdict(tmp_path, 3, 1, Verdict.CRASH, "a keeper came late")
    assert read_verdicts(tmp_path, 3)[1]["verdict"] == "requeue"
    found = json.loads((tmp_path / "exit" / "3" / "1.json").read_text())
    assert (found["exit_code"], found["step"], found["rank"], found["attempt"]) == (75, 7, 1, 3)
    assert [file.name for file in (tmp_path / "exit" / "3").iterdir()] == ["1.json"], "drafts are gone"


def test_a_process_without_an_attempt_leaves_its_verdict_too(tmp_path: Path) -> None:
    path = write_verdict(tmp_path, None, 0, Verdict.USER_ERROR, "no such key", pid=4711)
    assert path == verdict_path(tmp_path, None, 0, 4711)
    content = read_verdict(path)
    assert content is not None and content["verdict"] == "user_error" and content["pid"] == 4711


def test_what_is_no_verdict_is_none(tmp_path: Path) -> None:
    write_verdict(tmp_path, 1, 0, Verdict.COMPLETE, "")
    (tmp_path / "exit" / "1" / "1.json").write_text('{"verd')
    (tmp_path / "exit" / "1" / "0.pid").write_text("{}")
    (tmp_path / "exit" / "1" / "launch.json").write_text("{}")
    assert list(read_verdicts(tmp_path, 1)) == [0]
    assert read_verdicts(tmp_path, 2) == {}


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (ConfigError("x"), Verdict.USER_ERROR),
        (DataError("x"), Verdict.USER_ERROR),
        (CheckpointError("x"), Verdict.USER_ERROR),
        (HealthError("x"), Verdict.SICK_NODE),
        (KeyboardInterrupt(), Verdict.STOPPED),
        (SystemExit(75), Verdict.REQUEUE),
        (SystemExit(0), Verdict.CRASH),
        (SystemExit("text"), Verdict.CRASH),
        (RuntimeError("CUDA error"), Verdict.CRASH),
        (MemoryError(), Verdict.CRASH),
    ],
)
def test_errors_lead_to_verdicts(error: BaseException, verdict: Verdict) -> None:
    assert verdict_of(error) is verdict


def test_codes_tell_verdicts_apart() -> None:
    assert set(EXIT_CODES) == set(Verdict)
    assert len(set(EXIT_CODES.values())) == len(Verdict)
    assert EXIT_CODES[Verdict.COMPLETE] == 0


def test_a_verdict_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError):
        write_verdict(tmp_path, 1, 0, Verdict.STOPPED, "SIGINT")
    assert list((tmp_path / "exit" / "1").iterdir()) == []
