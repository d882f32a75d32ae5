"""Holds ranks of real trainings, trial after trial: ``python -m tests.hangs --trials 50 --seed 7``."""

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.fork_server import ForkServer
from tests.hangs.trial import KINDS, PHASES, Trial, carry_out
from tests.integration.runs import TinyRun, build_tiny_corpus


def draw(seed: int, number: int) -> Trial:
    """A trial; each phase with each way in turn, the rest by chance, and every tenth is slow and no hang."""
    source = random.Random(f"{seed} {number}")
    phase, kind = PHASES[number % len(PHASES)], KINDS[number % len(KINDS)]
    if number % 10 == 9:
        return Trial(source.randrange(2), *source.choice([("forward", 1), ("save", 2)]), "slow", source.randrange(4))
    return Trial(source.randrange(2), phase, source.randint(4, 9), kind, source.randrange(4))


def main() -> int:
    """Carries the trials out; returns 1 where one deviates."""
    parser = argparse.ArgumentParser(prog="python -m tests.hangs", description=__doc__)
    parser.add_argument("--trials", type=int, default=40, help="how many; 40 are each phase in each way")
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--seed", type=int, default=7, help="of all of them")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    folder = Path(tempfile.mkdtemp(prefix="scaletrain-hangs-"))
    (folder / "corpus").mkdir()
    manifest = build_tiny_corpus(folder / "corpus")
    deviating = []
    server = ForkServer(folder)
    try:
        for number in range(options.first, options.first + options.trials):
            trial, begin_s = draw(options.seed, number), time.monotonic()
            print(f"{number}: {trial}: ", end="", flush=True)
            problems = carry_out(trial, TinyRun(folder / f"trial-{number}", manifest), server)
            print("; ".join(problems) or "as it must be", f"({time.monotonic() - begin_s:.0f} s)", flush=True)
            if problems:
                deviating.append(number)
    finally:
        server.close()
    print(f"{options.trials} trials, {len(deviating)} deviate", end="")
    print(f": {deviating}; their folders are in {folder}" if deviating else "")
    if not deviating:
        shutil.rmtree(folder)
    return 1 if deviating else 0


if __name__ == "__main__":
    sys.exit(main())
