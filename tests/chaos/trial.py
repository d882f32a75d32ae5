"""One trial: what strikes a run, and whether it still ends as the run that nothing cut."""

import random
import shutil
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from scaletrain.errors import CheckpointError
from tests.chaos.damage import Damage, damage
from tests.chaos.fork_server import ForkServer
from tests.chaos.launching import Setting, Starter, node_of
from tests.chaos.reference import Outcome, References, deviations
from tests.chaos.strikes import Strike, small_disk
from tests.chaos.supervisor import Supervisor
from tests.integration.runs import TinyRun
from tests.processes import kill_all, living

Disk = Literal["", "run", "checkpoints", "node"]

MOST_ATTEMPTS = 10
GONE_WITHIN_S = 15.0
ELASTIC_REFERENCE = Setting(stage=1, ranks=1, dropout=0.0)


@dataclass(frozen=True)
class Trial:
    """What happens to one run.

    Attributes:
        name: Of its folder.
        settings: Of each attempt; the last one for all that follow.
        strikes: In each attempt; those that follow are left in peace.
        damages: After each attempt that does not complete the run.
        starter: Who starts the ranks.
        disk: What lies on a disk that is small.
        nan: See ``faulty_rank.py``; in the first attempt.
        most_attempts: More than this are a deviation.
    """

    name: str
    settings: tuple[Setting, ...]
    strikes: tuple[tuple[Strike, ...], ...] = ()
    damages: tuple[Damage | None, ...] = ()
    starter: Starter = "forked"
    disk: Disk = ""
    nan: str = ""
    most_attempts: int = MOST_ATTEMPTS

    def __str__(self) -> str:
        settings = " -> ".join(map(str, self.settings))
        extras = [f"small disk: {self.disk}"] * bool(self.disk) + [f"NaN at {self.nan}"] * bool(self.nan)
        return ", ".join([f"{self.name}: {settings}, {self.starter}", *extras])

    @property
    def is_exact(self) -> bool:
        """Whether the bits must be the same; on other ranks or stages only the batches are."""
        return len(self.settings) == 1


@dataclass
class Result:
    """What became of a trial.

    Attributes:
        history: What struck when, and how the attempts ended.
        attempts: How many there were.
        problems: Deviations from what must be; none in a trial that passed.
        seconds: It took.
    """

    history: list[str]
    attempts: int
    problems: list[str]
    seconds: float

    def __str__(self) -> str:
        outcome = "; ".join(["DEVIATES", *self.problems[:6]]) if self.problems else "as if nothing had been"
        return f"{'; '.join(self.history)} | {self.attempts} attempts, {self.seconds:.0f} s | {outcome}"


def carry_out(trial: Trial, folder: Path, references: References, server: ForkServer) -> Result:
    """Carries a trial out, and leaves nothing of it but a folder where it deviates.

    Args:
        trial: What happens.
        folder: Where its run may lie.
        references: Runs that nothing cuts.
        server: Forks ranks.

    Returns:
        What became of it.
    """
    begin_s = time.monotonic()
    expected = references.of(trial.settings[0] if trial.is_exact else ELASTIC_REFERENCE)
    run = TinyRun(folder / trial.name, references.manifest)
    draw = random.Random(trial.name)
    problems: list[str] = []
    with ExitStack() as stack:
        disks = {"run": run.run_dir, "checkpoints": run.run_dir / "checkpoints", "node": node_of(run)}
        disk = disks.get(trial.disk)
        if disk is not None:
            stack.enter_context(small_disk(disk))
        supervisor = Supervisor(run, trial.starter, server, disk, trial.nan)
        try:
            for number in range(trial.most_attempts):
                setting = trial.settings[min(number, len(trial.settings) - 1)]
                if supervisor.attempt(setting, trial.strikes[number] if number < len(trial.strikes) else ()):
                    break
                if supervisor.problem:
                    break
                kind = trial.damages[number] if number < len(trial.damages) else None
                if kind:
                    supervisor.history.append(damage(_places(run), kind, setting.every_steps, draw))
            else:
                supervisor.problem = supervisor.problem or f"not complete after {trial.most_attempts} attempts"
            if supervisor.problem:
                problems.append(supervisor.problem)
            else:
                problems += _deviations(run, trial, expected)
            problems += _what_lives_on(run, server)
        finally:
            supervisor.end()
            kill_all(run.folder)
        if problems and disk is not None:
            shutil.copytree(disk, run.folder / "disk")
    if not problems:
        shutil.rmtree(run.folder)
    return Result(supervisor.history, supervisor.attempts, problems, time.monotonic() - begin_s)


def _places(run: TinyRun) -> list[Path]:
    """Where its checkpoints are."""
    return [run.run_dir / "checkpoints", *sorted(node_of(run).glob("*"))]


def _deviations(run: TinyRun, trial: Trial, expected: Outcome) -> list[str]:
    try:
        return deviations(run.run_dir, trial.settings[0].max_steps, expected, trial.is_exact)
    except CheckpointError as error:
        return [f"the last checkpoint cannot be read: {error}"]


def _what_lives_on(run: TinyRun, server: ForkServer) -> list[str]:
    """Keepers and workers end by themselves, soon after their ranks; the lease of a complete run is given back."""

    def left() -> dict[int, str]:
        return living(run.folder) | {pid: text for pid, text in living(server.mark).items() if pid != server.pid}

    deadline_s = time.monotonic() + GONE_WITHIN_S
    while left() and time.monotonic() < deadline_s:
        time.sleep(0.1)
    problems = [f"process {pid} lives on: {text[-150:]}" for pid, text in left().items()]
    if (run.run_dir / "lease.json").exists():
        problems.append("the lease was not given back")
    return problems
