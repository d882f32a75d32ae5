"""Kills, damages and fills, trial after trial: ``python -m tests.chaos --trials 100 --seed 7``."""

import argparse
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.chaos.draw import draw_trial
from tests.chaos.fork_server import ForkServer
from tests.chaos.reference import References
from tests.chaos.strikes import can_mount
from tests.chaos.trial import carry_out
from tests.integration.runs import build_tiny_corpus


def main() -> int:
    """Carries the trials out; returns 1 where one deviates."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--trials", type=int, default=20, help="how many")
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--seed", type=int, default=7, help="of all of them")
    parser.add_argument("--folder", type=Path, help="where runs lie; default: a temporary one, kept if one deviates")
    options = parser.parse_args()
    # Asked to end, it still ends what it started and unmounts what it mounted.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    folder = options.folder or Path(tempfile.mkdtemp(prefix="scaletrain-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    may_mount = can_mount(folder / "disk")
    if not may_mount:
        print("no disk can be mounted here: trials of full disks are drawn as others")
    begin_s, deviating = time.monotonic(), []
    manifest = build_tiny_corpus(Path(tempfile.mkdtemp(dir=folder, prefix="corpus-")))
    server = ForkServer(folder)
    try:
        references = References(Path(tempfile.mkdtemp(dir=folder, prefix="references-")), manifest, server)
        for number in range(options.first, options.first + options.trials):
            trial = draw_trial(options.seed, number, may_mount)
            print(f"{trial}: ", end="", flush=True)
            try:
                result = carry_out(trial, folder, references, server)
            except Exception:
                traceback.print_exc()
                deviating.append(number)
                continue
            print(result, flush=True)
            if result.problems:
                deviating.append(number)
    finally:
        server.close()
    print(f"{options.trials} trials in {time.monotonic() - begin_s:.0f} s, {len(deviating)} deviate", end="")
    print(f": {deviating}; their folders are in {folder}" if deviating else "")
    if not deviating and options.folder is None:
        shutil.rmtree(folder)
    return 1 if deviating else 0


if __name__ == "__main__":
    sys.exit(main())
