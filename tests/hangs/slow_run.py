"""A training that is slow and never hangs: ``python -m tests.hangs.slow_run --minutes 10``.

Its first step compiles, and its checkpoints lie on a disk that stops again and again while a save is under way, for
longer than a phase may last that has been seen. Nobody may be taken for one that hangs.
"""

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from scaletrain.launch.events import read_events
from scaletrain.launch.processes import Process, kill, process_of
from scaletrain.launch.verdicts import read_verdicts
from scaletrain.monitors.jsonl_writer import read_metrics
from tests.chaos.fork_server import ForkServer
from tests.chaos.strikes import unmount
from tests.integration.runs import ENVIRONMENT, ROOT, TRAIN, TinyRun, build_tiny_corpus, free_port
from tests.processes import eventually, kill_all, living

# By default 600 s and 1200 s. Compiling takes as long for a tiny model as for a large one: the limit of what was not
# seen before cannot be as much shorter.
LEAST_S, FIRST_S = 10.0, 300.0
FIRST_STOP_S = (12.0, 16.0)  # longer than the least limit, and longer than the limit of any phase that was seen
STOPS_S = (0.5, 30.0)  # up to half of the limit that the first one has taught
DISK_MIB = 64
START_S = 900.0  # until the first save, at most
RANKS = 2


@dataclass(frozen=True)
class SlowRun:
    """What kind of a training it is.

    Attributes:
        background: Whether it writes its checkpoints beside the training.
        compile: Whether its first step compiles.
        every_steps: Between two checkpoints.
        stops: After so many stops of the disk it is asked to end, ...
        minutes: ... or this long after the first one, whichever comes first.
    """

    background: bool
    compile: bool
    every_steps: int
    stops: int
    minutes: float


def carry_out(slow: SlowRun, run: TinyRun, server: ForkServer, seed: int = 7) -> tuple[list[str], str]:
    """Trains, with a disk that stops in each save.

    Args:
        slow: How.
        run: A run that has not begun.
        server: Forks the ranks.
        seed: Of the lengths of the stops.

    Returns:
        What is not as it must be, and what the run did, in words.
    """
    draw, until_s = random.Random(seed), time.monotonic() + START_S
    checkpoints = run.run_dir / "checkpoints"
    stops_s: dict[str, float] = {}
    with disk_that_can_stop(run.folder / "disk.img", checkpoints):
        ranks = start(slow, run, server)
        try:
            while len(stops_s) < slow.stops and time.monotonic() < until_s and not read_verdicts(run.run_dir, 1):
                for save in {path.name for path in checkpoints.glob("partial_*")} - stops_s.keys():
                    if not stops_s:
                        until_s = time.monotonic() + 60 * slow.minutes
                    stops_s[save] = draw.uniform(*(STOPS_S if stops_s else FIRST_STOP_S))
                    stop(checkpoints, stops_s[save])
                time.sleep(0.01)
            (run.run_dir / "stop").touch()
            eventually(lambda: len(read_verdicts(run.run_dir, 1)) == RANKS, 120, "all ranks end")
            eventually(lambda: not living(run.folder), 30, lambda: f"nothing lives on: {living(run.folder)}")
            return deviations(run), told(run, list(stops_s.values()))
        finally:
            for rank in ranks:
                kill(rank, signal.SIGKILL)
            kill_all(run.folder)


@contextmanager
def disk_that_can_stop(image: Path, folder: Path) -> Iterator[None]:
    """A folder on a disk of its own; needs root."""
    folder.mkdir(parents=True)
    with image.open("wb") as file:
        file.truncate(DISK_MIB << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, folder], check=True)
    try:
        yield
    finally:
        unmount(folder)
        image.unlink()


def stop(folder: Path, seconds: float) -> None:
    """Has a disk stop: whoever writes to it waits in the kernel, as for a file server that does not answer."""
    # In one command, which ends what it has begun also where whoever waits for it is gone.
    command = 'fsfreeze --freeze "$1" && sleep "$2"; fsfreeze --unfreeze "$1"'
    subprocess.run(["sh", "-c", command, "sh", folder, str(seconds)], check=True)


def start(slow: SlowRun, run: TinyRun, server: ForkServer) -> list[Process]:
    """Starts the ranks."""
    flags: tuple[object, ...] = ("--monitor.hang.min_limit_s", LEAST_S, "--monitor.hang.first_limit_s", FIRST_S)
    flags += ("--train.max_steps", 1_000_000, "--train.compile", slow.compile, "--eval.every_steps", 50)
    flags += ("--checkpoint.every_steps", slow.every_steps, "--checkpoint.background", slow.background)
    common = ENVIRONMENT | {"PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    common |= {"WORLD_SIZE": str(RANKS), "LOCAL_WORLD_SIZE": str(RANKS)}
    common |= {"TORCHINDUCTOR_CACHE_DIR": str(run.folder / "compiled")}  # nothing was compiled before
    arguments = ["--config", str(run.config), *(str(flag).lower() for flag in flags)]
    places = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(RANKS)]
    pids = [server.fork(TRAIN, arguments, common | place, run.folder / f"rank-{place['RANK']}.txt") for place in places]
    return [process for pid in pids if (process := process_of(pid)) is not None]


def deviations(run: TinyRun) -> list[str]:
    """What the verdicts say otherwise than they must."""
    verdicts = read_verdicts(run.run_dir, 1)
    problems = [f"{content['verdict']}: {content['reason']}" for content in verdicts.values()]
    problems = [problem for problem in problems if not problem.startswith("stopped: ")]
    return [*problems, *["there is a report"] * (run.run_dir / "hang").exists()]


def told(run: TinyRun, stops_s: list[float]) -> str:
    """What the run did, in words."""
    events = read_events(run.run_dir / "events.jsonl")
    (start_s,) = [event["time_s"] for event in events if event["event"] == "start"]
    steps = [line for line in read_metrics(run.run_dir / "metrics.jsonl") if "train/loss" in line]
    saves_s = [event["seconds"] for event in events if event["event"] == "save"]
    return (
        f"{steps[-1]['step']} steps in {steps[-1]['time_s'] - start_s:.0f} s, "
        f"the first after {steps[0]['time_s'] - start_s:.0f} s; {len(saves_s)} saves of {min(saves_s):.1f} to "
        f"{max(saves_s):.1f} s; the disk stopped {len(stops_s)} times, for {sum(stops_s):.0f} s in all"
    )


def main() -> int:
    """Trains twice at the same time, once compiled; returns 1 where somebody was taken for one that hangs."""
    parser = argparse.ArgumentParser(prog="python -m tests.hangs.slow_run", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="how long")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    folder = Path(tempfile.mkdtemp(prefix="scaletrain-slow-"))
    (folder / "corpus").mkdir()
    manifest = build_tiny_corpus(folder / "corpus")
    server = ForkServer(folder)

    def train(background: bool) -> list[str]:
        slow = SlowRun(background, not background, 20, 1_000_000, options.minutes)
        problems, words = carry_out(slow, TinyRun(folder / f"background-{background}", manifest), server)
        manner = "saves beside the training" if background else "compiled, saves while the training waits"
        print(f"{manner}: {'; '.join([*problems, words])}", flush=True)
        return problems

    try:
        with ThreadPoolExecutor(2) as pool:
            problems = [problem for found in pool.map(train, (False, True)) for problem in found]
    finally:
        server.close()
    if not problems:
        shutil.rmtree(folder)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
