"""Signals and the stop file become requests; nothing of a signal ends the process by itself."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# A rank that says what it has been asked for, a line for each line that it is sent.
RANK = """
import sys
from pathlib import Path
from scaletrain.training.signals import KINDS, StopRequests

stop = StopRequests(Path(sys.argv[1]), watch_file=sys.argv[2] == "main")
print("ready", flush=True)
for line in sys.stdin:
    asked = [kind for kind, seen in zip(KINDS, stop.pending()) if seen]
    print(*(f"{kind}: {stop.reason(kind)}" for kind in asked), sep=", ", flush=True)
"""


class Rank:
    def __init__(self, run_dir: Path, role: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", RANK, str(run_dir), role],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def asked(self) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._line()

    def end(self) -> str:
        """Closes its input, on which it ends by itself; returns what it wrote to standard error."""
        return self.process.communicate(timeout=20)[1]


@pytest.fixture
def main_rank(tmp_path: Path) -> Iterator[Rank]:
    rank = Rank(tmp_path, "main")
    yield rank
    rank.process.kill()
    rank.process.communicate()


@pytest.mark.parametrize(
    ("number", "request_made"),
    [
        (signal.SIGTERM, "requeue: SIGTERM"),
        (signal.SIGUSR1, "requeue: SIGUSR1"),
        (signal.SIGUSR2, "requeue: SIGUSR2"),
        (signal.SIGINT, "stopped: SIGINT"),
    ],
)
def test_a_signal_is_a_request(main_rank: Rank, number: int, request_made: str) -> None:
    assert main_rank.asked() == ""
    os.kill(main_rank.process.pid, number)
    assert main_rank.asked() == request_made
    assert main_rank.asked() == request_made  # it stands until the loop has acted on it
    main_rank.end()
    assert main_rank.process.returncode == 0


def test_the_first_reason_stands_and_stopping_weighs_more(main_rank: Rank) -> None:
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
        os.kill(main_rank.process.pid, number)
        main_rank.asked()
    assert main_rank.asked() == "stopped: SIGINT, requeue: SIGUSR1"


def test_the_stop_file_is_seen_once_and_by_the_main_rank_only(main_rank: Rank, tmp_path: Path) -> None:
    (tmp_path / "stop").touch()
    other = Rank(tmp_path, "other")
    assert other.asked() == "" and (tmp_path / "stop").exists()
    other.end()
    assert main_rank.asked() == "stopped: stop file"
    assert not (tmp_path / "stop").exists()


def test_sigquit_shows_the_stacks_and_goes_on(main_rank: Rank) -> None:
    os.kill(main_rank.process.pid, signal.SIGQUIT)
    assert main_rank.asked() == ""
    stacks = main_rank.end()
    assert "most recent call first" in stacks and main_rank.process.returncode == 0
