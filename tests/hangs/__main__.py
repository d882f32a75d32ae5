"""Holds ranks of real trainings, trial after trial: ``python -m tests.hangs --trials 300 --at_once 3``."""

import argparse
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.chaos.fork_server import ForkServer
from tests.hangs.trial import KINDS, PHASES, Outcome, Trial, carry_out
from tests.integration.runs import TinyRun, build_tiny_corpus

SLOW = (("forward", 1), ("save", 2))  # a first step that compiles, a first save to a slow disk


def draw(seed: int, number: int) -> Trial:
    """A trial: each way in turn, and in each way each phase in turn; the rest by chance."""
    source = random.Random(f"{seed} {number}")
    turn, kind = divmod(number, len(KINDS) + 1)
    world_size = source.randint(2, 4)
    rank, stage = source.randrange(world_size), source.randrange(4)
    if kind == len(KINDS):
        return Trial(rank, *SLOW[turn % len(SLOW)], "slow", stage, world_size)
    return Trial(rank, PHASES[turn % len(PHASES)], source.randint(4, 9), KINDS[kind], stage, world_size)


def main() -> int:
    """Carries the trials out; returns 1 where one deviates."""
    parser = argparse.ArgumentParser(prog="python -m tests.hangs", description=__doc__)
    parser.add_argument("--trials", type=int, default=54, help="how many; 54 are each phase in each way")
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--seed", type=int, default=7, help="of all of them")
    parser.add_argument("--at_once", type=int, default=1, help="how many at the same time; most of them only wait")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    folder = Path(tempfile.mkdtemp(prefix="scaletrain-hangs-"))
    (folder / "corpus").mkdir()
    manifest = build_tiny_corpus(folder / "corpus")
    server = ForkServer(folder)

    def try_one(number: int) -> tuple[Trial, Outcome]:
        trial, begin_s = draw(options.seed, number), time.monotonic()
        outcome = carry_out(trial, TinyRun(folder / f"trial-{number}", manifest), server)
        told = "; ".join(outcome.problems) or "as it must be"
        print(f"{number}: {trial}: {told} ({time.monotonic() - begin_s:.0f} s)", flush=True)
        return trial, outcome

    pool = ThreadPoolExecutor(options.at_once)
    try:
        tried = list(pool.map(try_one, range(options.first, options.first + options.trials)))
    finally:
        pool.shutdown(cancel_futures=True)
        server.close()
    print(table(tried))
    if deviating := sum(bool(outcome.problems) for _, outcome in tried):
        print(f"{deviating} deviate; their folders are in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


def table(tried: Sequence[tuple[Trial, Outcome]]) -> str:
    """What became of each way, in Markdown."""
    by_kind: Mapping[str, list[Outcome]] = defaultdict(list)
    for trial, outcome in tried:
        by_kind[trial.kind].append(outcome)
    lines = ["| way | trials | as it must be | named after, s: median | longest | longest beyond the limit |"]
    lines += ["|---|---|---|---|---|---|"]
    for kind, outcomes in by_kind.items():
        right = [outcome for outcome in outcomes if not outcome.problems]
        named = [outcome.named_s for outcome in right] or [0.0]
        beyond = max((outcome.named_s - outcome.limit_s for outcome in right), default=0.0)
        times = f"{statistics.median(named):.1f} | {max(named):.1f} | {beyond:.1f}" if kind != "slow" else " |  | "
        lines.append(f"| {kind} | {len(outcomes)} | {len(right)} | {times} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
