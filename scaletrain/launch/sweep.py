"""Runs for each line of a file, one after the other or some at a time, on this machine."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import scaletrain
from scaletrain.config.command_line import parse
from scaletrain.config.derive import check
from scaletrain.config.fields import flatten
from scaletrain.config.load import load_config, raise_all
from scaletrain.config.schema import RunConfig
from scaletrain.errors import ConfigError
from scaletrain.launch.attempts import attempt_numbers
from scaletrain.launch.processes import free_port
from scaletrain.launch.run_dir import RunDirectory
from scaletrain.launch.slurm.scripts import sweep_lines
from scaletrain.launch.verdicts import Verdict, read_verdicts

_TRAIN = Path(scaletrain.__file__).parent / "train.py"
_LOOKS_S = 0.2
_MAY_GROW = ("run_dir", "train.max_steps")
"""What may differ where a run goes on: another value of anything else would make the comparison a lie."""


@dataclass(frozen=True)
class SweptRun:
    """One of the runs.

    Attributes:
        line: Its own arguments, as they stand in the file.
        arguments: All that reach scaletrain/train.py.
        config: What they make.
    """

    line: str
    arguments: tuple[str, ...]
    config: RunConfig

    @property
    def name(self) -> str:
        """Of its folder: the number of its line, from 0."""
        return self.config.run_dir.name


@dataclass(frozen=True)
class Place:
    """Where one run at a time is trained.

    Attributes:
        environment: Variables that differ from this process's.
        world_size: Processes of a run.
    """

    environment: Mapping[str, str]
    world_size: int


def plan_sweep(file: Path, folder: Path, shared: Sequence[str]) -> list[SweptRun]:
    """Reads and checks all runs before any begins.

    Args:
        file: The arguments of one run in each line.
        folder: Where the run directories go, named 0, 1 and so on.
        shared: Arguments of all runs; a line's own are stronger.

    Returns:
        The runs, in the order of the lines.

    Raises:
        ConfigError: Lists what is wrong in each line; or there is none.
    """
    runs, problems = [], []
    for number, line in enumerate(sweep_lines(file)):
        try:
            arguments = (*shared, *shlex.split(line), "--run_dir", str(folder / str(number)))
            command = parse(arguments)
            config = load_config(command.config, command.overrides)
            check(config)
            _refuse_other_settings(config)
        except (ConfigError, ValueError) as error:
            problems.append(f"{file}, run {number} ({line.strip()}): {error}")
        else:
            runs.append(SweptRun(line.strip(), arguments, config))
    raise_all(problems)
    if not runs:
        raise ConfigError(f"{file} has no line with arguments; write those of one run in each line")
    return runs


def _refuse_other_settings(config: RunConfig) -> None:
    folder = RunDirectory(config.run_dir)
    if not (folder.config.exists() and folder.has_trained()):
        return
    known, wanted = flatten(load_config(folder.config, {})), flatten(config)
    other = [key for key in wanted if known[key] != wanted[key] and key not in _MAY_GROW]
    if other:
        told = ", ".join(f"{key} {known[key]} there and {wanted[key]} here" for key in other)
        raise ConfigError(f"{config.run_dir} was trained with other settings: {told}; delete it, or name another file")


def is_complete(run: SweptRun) -> bool:
    """Whether a run has nothing left to do.

    Args:
        run: The run.
    """
    folder = RunDirectory(run.config.run_dir)
    if _verdict(run) is not Verdict.COMPLETE or not folder.config.exists():
        return False
    return run.config.train.max_steps <= load_config(folder.config, {}).train.max_steps


def _verdict(run: SweptRun) -> Verdict | None:
    """How the newest start ended: as complete only where all of its ranks say so."""
    newest = max(attempt_numbers(run.config.run_dir), default=None)
    told = [] if newest is None else read_verdicts(run.config.run_dir, newest).values()
    verdicts = [Verdict(content["verdict"]) for content in told]
    return next((verdict for verdict in verdicts if verdict is not Verdict.COMPLETE), next(iter(verdicts), None))


def divide(jobs: int, cores: int, gpus: Sequence[str]) -> list[Place]:
    """Shares a machine out among runs that are trained at the same time.

    Args:
        jobs: How many runs.
        cores: Cores of the machine.
        gpus: Its GPUs, as ``CUDA_VISIBLE_DEVICES`` names them.

    Returns:
        A place for each.

    Raises:
        ConfigError: There are fewer GPUs than runs.
    """
    if not gpus:
        return [Place({"OMP_NUM_THREADS": str(max(1, cores // jobs))} if jobs > 1 else {}, 1)] * jobs
    if jobs > len(gpus):
        raise ConfigError(f"--jobs {jobs}: there are {len(gpus)} GPUs, and each run needs one at least")
    each = len(gpus) // jobs
    shares = [gpus[job * each : (job + 1) * each] for job in range(jobs)]
    return [Place({"CUDA_VISIBLE_DEVICES": ",".join(share)}, each) for share in shares]


class Sweep:
    """Trains runs at several places; each goes on where it was cut, and one that fails holds no other up."""

    def __init__(self, runs: Sequence[SweptRun], places: Sequence[Place], report: Callable[[str], None]) -> None:
        """Nothing is started yet.

        Args:
            runs: What to train.
            places: Where.
            report: Takes a line for people whenever a run begins or ends.
        """
        self._waiting = deque(runs)
        self._free = list(places)
        self._running: list[tuple[Place, SweptRun, subprocess.Popen[bytes], float]] = []
        self._report = report
        self._asked = 0

    def ask_to_stop(self) -> None:
        """No other run is begun, and those under way save and end; the second time they are killed. For a signal."""
        self._asked += 1

    def train(self) -> None:
        """Returns when all are over, or those under way after ``ask_to_stop``."""
        heeded = 0
        while self._waiting or self._running:
            if self._asked > heeded:
                heeded = self._asked
                self._stop()
            while self._waiting and self._free:
                self._begin(self._free.pop(0), self._waiting.popleft())
            over = [one for one in self._running if one[2].poll() is not None]
            for one in over:
                self._running.remove(one)
                self._end(*one)
            if not over:
                time.sleep(_LOOKS_S)

    def _stop(self) -> None:
        self._waiting.clear()
        for _, run, process, _ in self._running:
            if self._asked == 1:
                (run.config.run_dir / "stop").touch()
            else:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

    def _begin(self, place: Place, run: SweptRun) -> None:
        output = run.config.run_dir / "logs" / "output.txt"
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            with output.open("ab") as stream:
                # In a session of its own: Ctrl-C reaches this process alone, which passes it on once.
                process = subprocess.Popen(
                    _command(place, run),
                    env=os.environ | dict(place.environment),
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=stream,
                    start_new_session=True,
                )
        except OSError as error:
            self._free.append(place)
            self._report(f"{run.name}: cannot be started: {error}")
            return
        self._report(f"{run.name}: {run.line}  (what it prints: {output})")
        self._running.append((place, run, process, time.monotonic()))

    def _end(self, place: Place, run: SweptRun, process: "subprocess.Popen[bytes]", begun_s: float) -> None:
        self._free.append(place)
        verdict = _verdict(run) or f"no verdict, exit code {process.returncode}"
        self._report(f"{run.name}: {verdict} after {time.monotonic() - begun_s:.0f} s")


def _command(place: Place, run: SweptRun) -> list[str]:
    launcher = []
    if place.world_size > 1:
        launcher = ["-m", "deepspeed.launcher.runner", "--master_port", str(free_port())]
    return [sys.executable, *launcher, str(_TRAIN), *run.arguments]
