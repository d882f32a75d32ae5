"""What strikes a living attempt, and when."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from scaletrain.launch.processes import kill
from tests.chaos.launching import Attempt

Kind = Literal["kill_one", "kill_all", "term_one", "term_all", "usr2_all", "pause_one", "fill_disk"]
Phase = Literal["start", "step", "save", "evaluation"]

SIGNALS: dict[Kind, tuple[signal.Signals, bool]] = {
    "kill_one": (signal.SIGKILL, False),
    "kill_all": (signal.SIGKILL, True),
    "term_one": (signal.SIGTERM, False),
    "term_all": (signal.SIGTERM, True),
    "usr2_all": (signal.SIGUSR2, True),
    "pause_one": (signal.SIGSTOP, False),
}
PAUSE_S = 1.5
FULL_S = 0.6
DISK_MIB = 48  # a save wants 16 MiB to spare
EVALUATION_STEPS = 4  # interval in the tiny run's configuration
_POLL_S = 0.003


@dataclass(frozen=True)
class Strike:
    """One fault in a living attempt.

    Attributes:
        kind: What happens.
        phase: ``start``: before or while the ranks connect; ``step``: after so many steps of the attempt; ``save``: a
            checkpoint is being written; ``evaluation``: a step was logged after which one follows.
        steps: Steps that the attempt has done before.
        delay_s: From then on.
        rank: Which rank, where it is one, modulo their number.
    """

    kind: Kind
    phase: Phase = "step"
    steps: int = 1
    delay_s: float = 0.0
    rank: int = 0

    def __str__(self) -> str:
        where = {"start": "at the start", "step": f"after {self.steps} steps"}.get(self.phase, f"in the {self.phase}")
        who = f" (rank {self.rank})" if self.kind.endswith("_one") else ""
        return f"{self.kind}{who} {where} + {1000 * self.delay_s:.0f} ms"


class Watch:
    """Sees how far an attempt has come, by the files that it writes."""

    def __init__(self, run_dir: Path, node: Path) -> None:
        """Begins; called before the attempt starts."""
        self._metrics = run_dir / "metrics.jsonl"
        self._checkpoints, self._node = run_dir / "checkpoints", node
        self._offset = self._metrics.stat().st_size if self._metrics.exists() else 0
        self._old = self._partials()

    def lines(self) -> list[bytes]:
        """Lines of metrics that the attempt has written of its steps."""
        try:
            with self._metrics.open("rb") as file:
                file.seek(self._offset)
                return [line for line in file.read().split(b"\n")[:-1] if b'"train/loss"' in line]
        except FileNotFoundError:
            return []

    def is_saving(self) -> bool:
        """Whether it writes a checkpoint; what an attempt before left half written does not count."""
        return bool(self._partials() - self._old)

    def is_evaluating(self) -> bool:
        """Whether the step after which an evaluation follows was the last one."""
        lines = self.lines()
        return bool(lines) and int(lines[-1].split(b'"step": ')[1].split(b",")[0]) % EVALUATION_STEPS == 0

    def _partials(self) -> set[tuple[str, int]]:
        found = set()
        for place in [self._checkpoints, *self._node.glob("*")]:
            try:
                found |= {(e.path, e.inode()) for e in os.scandir(place) if e.name.startswith("partial_")}
            except FileNotFoundError:
                continue  # not made yet
        return found


def strike(what: Strike, attempt: Attempt, watch: Watch, disk: Path | None) -> bool:
    """Waits for the moment, and strikes; returns whether the attempt had not ended before."""
    # A launcher takes its time until it has ranks.
    if not _wait(lambda: bool(attempt.ranks()), attempt):
        return False
    if what.phase != "start" and not _wait(lambda: len(watch.lines()) >= what.steps, attempt):
        return False
    if what.phase == "save" and not _wait(watch.is_saving, attempt):
        return False
    if what.phase == "evaluation" and not _wait(watch.is_evaluating, attempt):
        return False
    time.sleep(what.delay_s)
    if not attempt.is_alive():
        return False
    if what.kind == "fill_disk":
        assert disk is not None
        fill(disk)
        return True
    ranks = attempt.ranks()
    number, is_for_all = SIGNALS[what.kind]
    chosen = list(ranks.values()) if is_for_all else [ranks[key] for key in sorted(ranks)[what.rank % len(ranks) :][:1]]
    for rank in chosen:
        kill(rank, number)
    if what.kind == "pause_one":
        time.sleep(PAUSE_S)
        for rank in chosen:
            kill(rank, signal.SIGCONT)
    return True


def _wait(condition: Callable[[], bool], attempt: Attempt) -> bool:
    deadline_s = time.monotonic() + 90
    while time.monotonic() < deadline_s:
        if condition():
            return True
        if not attempt.is_alive() or attempt.is_partly_dead():
            return False
        time.sleep(_POLL_S)
    return False


def fill(disk: Path) -> None:
    """Leaves no byte on a small disk for a while, whatever the run deletes meanwhile."""
    filler = disk / ".filler"
    deadline_s = time.monotonic() + FULL_S
    try:
        with filler.open("wb", buffering=0) as file:
            while time.monotonic() < deadline_s:
                try:
                    file.write(bytes(1 << 16))
                except OSError:
                    try:
                        file.write(bytes(1))
                    except OSError:
                        time.sleep(_POLL_S)
    finally:
        filler.unlink()


def can_mount(folder: Path) -> bool:
    """Whether this process may mount a disk there."""
    try:
        with small_disk(folder):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A folder on a disk of its own that is soon full; needs root."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "scaletrain-chaos", folder], check=True)
    try:
        yield folder
    finally:
        unmount(folder)


def unmount(folder: Path) -> None:
    """Takes a disk away, once nobody uses it any more."""
    # What a run opened last may take a moment to be closed.
    for _ in range(50):
        if subprocess.run(["umount", folder], stderr=subprocess.DEVNULL).returncode == 0:
            return
        time.sleep(0.2)
    subprocess.run(["umount", "--lazy", folder], check=True)
    raise AssertionError(f"something still used {folder}")
