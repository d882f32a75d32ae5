import contextlib
import logging
import os
import pty
import sys

import pytest

from scaletrain.corpus import progress
from scaletrain.corpus.progress import BuildProgress


def test_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    clock = iter([0.0, 0.0, 5.0, 10.0, 11.0, 20.0, 20.0, 20.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    caplog.set_level(logging.INFO)
    with BuildProgress("tokenizing", lambda: 0.25) as shown:
        for _ in range(3):
            shown.advance(1_000_000, 500_000)
    assert caplog.messages == [
        "tokenizing  25%: 0 documents/s, 0.2 MB/s, 100k tokens/s, 30s left",
        "tokenizing took 20s: 0 documents/s, 0.1 MB/s, 75.0k tokens/s",
    ]


def test_a_terminal_gets_a_bar_and_the_log_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("COLUMNS", "140")
        monkeypatch.setattr(progress, "_REFRESH_S", 0.0)
        handler = logging.StreamHandler(terminal)
        monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
        with BuildProgress("tokenizing", lambda: 0.5) as shown:
            shown.advance(1_000_000, 500_000)
            logging.getLogger(__name__).warning("a shard is finished")
        assert handler.stream is terminal
    output = b""
    with contextlib.suppress(OSError):  # at the end of a terminal that nobody holds open
        while part := os.read(ours, 1 << 16):  # of which a read may give less than there is
            output += part
    os.close(ours)
    told = output.decode()
    assert "tokenizing" in told and "100%" in told and "documents/s" in told and "tokens/s" in told
    assert "a shard is finished\r\n" in told
