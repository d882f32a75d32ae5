"""Signals and files become requests; a first signal ends nothing by itself, the same once more ends the process."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scaletrain.training.signals import RequestFiles

# A rank that says what it has been asked for, a line for each line that it is sent.
RANK = """
import os
import sys
import zlib
from pathlib import Path
from scaletrain.training.signals import KINDS, StopRequests

def end_at_once(ending):
    print(f"{ending.verdict}: {ending.reason}", flush=True)
    os._exit(99)

stop = StopRequests(Path(sys.argv[1]), sys.argv[2] == "main", end_at_once)
print("ready", flush=True)
for line in sys.stdin:
    if line.strip() == "compute":
        # No handler runs in the main thread until it is back, as in a collective; compressing gives the lock back.
        zlib.compress(os.urandom(200_000_000), 9)
    *seen, save = stop.pending()
    asked = [kind for kind, has_come in zip(KINDS, seen) if has_come] + ["save"] * save
    print(*(kind if kind == "save" else f"{kind}: {stop.reason(kind)}" for kind in asked), sep=", ", flush=True)
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
        self.begin("")
        return self._line()

    def begin(self, order: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{order}\n")
        self.process.stdin.flush()

    def said(self) -> str:
        """What it says without being asked."""
        return self._line()

    def end(self) -> str:
        """Closes its input, on which it ends by itself; returns what it wrote to standard error."""
        return self.process.communicate(timeout=20)[1]


@pytest.fixture
def main_rank(tmp_path: Path) -> Iterator[Rank]:
    (tmp_path / "stop").touch()
    os.utime(tmp_path / "stop", (0, 0))  # meant for an earlier start
    rank = Rank(tmp_path, "main")
    yield rank
    rank.process.kill()
    rank.process.wait()
    for stream in (rank.process.stdin, rank.process.stdout, rank.process.stderr):
        assert stream is not None
        stream.close()


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


def test_a_request_counts_where_nobody_reads_the_standard_error(main_rank: Rank) -> None:
    """Ctrl-C in ``... 2>&1 | tee log`` ends the tee as well."""
    assert main_rank.process.stderr is not None
    main_rank.process.stderr.close()
    os.kill(main_rank.process.pid, signal.SIGINT)
    assert main_rank.asked() == "stopped: SIGINT"
    assert main_rank.process.poll() is None


def test_the_stop_file_is_seen_once_and_by_the_main_rank_only(main_rank: Rank, tmp_path: Path) -> None:
    (tmp_path / "stop").touch()
    other = Rank(tmp_path, "other")
    assert other.asked() == "" and (tmp_path / "stop").exists()
    other.end()
    assert main_rank.asked() == "stopped: stop file"
    assert not (tmp_path / "stop").exists()


def test_the_save_file_is_seen_once_and_ends_nothing(main_rank: Rank, tmp_path: Path) -> None:
    (tmp_path / "save").touch()
    assert main_rank.asked() == "save"
    assert not (tmp_path / "save").exists() and main_rank.asked() == ""


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Callable[[], int]:
    """How many warnings there were since it was last asked."""

    def count() -> int:
        found = len(caplog.records)
        caplog.clear()
        return found

    return count


def test_files_from_before_the_start_are_not_heeded(tmp_path: Path, told: Callable[[], int]) -> None:
    for name in ("stop", "save"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    files = RequestFiles(tmp_path, time.time() - 60)
    assert told() == 2 and list(tmp_path.iterdir()) == []
    (tmp_path / "stop").touch()
    files = RequestFiles(tmp_path, time.time() - 60)  # while it starts, it is asked
    assert files.take("stop") and not files.take("stop") and told() == 0


def test_an_entry_that_cannot_be_deleted_counts_once(tmp_path: Path, told: Callable[[], int]) -> None:
    files = RequestFiles(tmp_path, time.time() - 60)
    (tmp_path / "save").mkdir()
    assert [files.take("save") for _ in range(3)] == [True, False, False] and told() == 1
    (tmp_path / "save").rmdir()
    assert not files.take("save")
    (tmp_path / "save").touch()
    assert files.take("save") and not files.take("save") and told() == 0
    (tmp_path / "stop").mkdir()
    os.utime(tmp_path / "stop", (0, 0))
    assert not RequestFiles(tmp_path, time.time() - 60).take("stop") and told() == 2


def test_a_folder_that_cannot_be_looked_into_asks_for_nothing(
    tmp_path: Path, told: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(path: Path) -> os.stat_result:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(Path, "lstat", stale)
    files = RequestFiles(tmp_path, time.time())
    assert [files.take("stop") for _ in range(3)] == [False] * 3 and told() == 1


def test_the_same_signal_again_ends_at_once_even_in_c_code(main_rank: Rank) -> None:
    main_rank.begin("compute")
    start_s = time.monotonic()
    # Within a second the same signal is taken for one: launchers and terminals send it twice.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
        os.kill(main_rank.process.pid, number)
        time.sleep(0.05)
    time.sleep(1.2)
    # Another one, such as Slurm's SIGTERM after its SIGUSR2, does not cut the save short.
    os.kill(main_rank.process.pid, signal.SIGUSR2)
    time.sleep(0.1)
    assert main_rank.process.poll() is None
    os.kill(main_rank.process.pid, signal.SIGTERM)
    # The verdict is that of the weightier request: it was stopped, and the launcher sent the SIGTERM.
    assert main_rank.said() == "stopped: SIGTERM came again, 1 s after the first"
    assert main_rank.process.wait(timeout=5) == 99
    assert time.monotonic() - start_s < 4, "it did not wait until the main thread was back"


def test_sigquit_shows_the_stacks_and_goes_on(main_rank: Rank) -> None:
    os.kill(main_rank.process.pid, signal.SIGQUIT)
    assert main_rank.asked() == ""
    stacks = main_rank.end()
    assert "most recent call first" in stacks and main_rank.process.returncode == 0
