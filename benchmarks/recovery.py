"""How long a job on Slurm trains nothing after a fault, on the cluster that the tests bring up on one machine.

    PYTHONPATH=. python benchmarks/recovery.py --rounds 2

Needs root and Debian's slurm-wlm and munge, which tools/setup.sh installs. The time is that from the last step before
the fault to the first one after it, as metrics.jsonl has them.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median

import fire
from conditions import print_conditions

from tests.integration.runs import build_tiny_corpus
from tests.slurm.cluster import Cluster
from tests.slurm.jobs import SlurmRun

COLLECTIVE_S = 10
FLAGS = ("--train.collective_timeout_s", COLLECTIVE_S, "--train.max_steps", 400)
CHECKED = {"PREFLIGHT": "full", "CHECK_LIMIT_S": "30", "DRAIN_NODES": "0"}


def gap_s(run: SlurmRun) -> float:
    """The longest time between two steps that were trained one after the other."""
    lines = [json.loads(line) for line in (run.run_dir / "metrics.jsonl").read_text().splitlines()]
    times = [line["time_s"] for line in lines if "train/loss" in line]
    return max(later - earlier for earlier, later in pairwise(times))


def kill_a_rank(cluster: Cluster, run: SlurmRun) -> None:
    run.kill_rank(1)


def requeue(cluster: Cluster, run: SlurmRun) -> None:
    cluster.run("scancel", "--signal=TERM", run.job_id)


def power_off(cluster: Cluster, run: SlurmRun) -> None:
    cluster.power_off("n2")


# What happens, on how many nodes with how many in reserve, and how it is done.
FAULTS: dict[str, tuple[int, int, Callable[[Cluster, SlurmRun], None]]] = {
    "a process is killed; the same nodes": (2, 0, kill_a_rank),
    "all ranks are asked to end; requeued": (2, 0, requeue),
    "a node loses power; a spare takes over": (3, 1, power_off),
    "a node loses power; requeued without it": (2, 0, power_off),
}


def main(*, rounds: int = 2) -> None:
    """Measures each fault once a round.

    Args:
        rounds: Rounds.
    """
    found: dict[str, list[float]] = {name: [] for name in FAULTS}
    with tempfile.TemporaryDirectory(prefix="scaletrain-recovery-") as folder:
        manifest = build_tiny_corpus(Path(folder))
        (Path(folder) / "cluster").mkdir()
        with Cluster(Path(folder) / "cluster") as cluster:
            for turn in range(rounds):
                for name, (nodes, spares, strike) in FAULTS.items():
                    run = SlurmRun(cluster, Path(folder) / f"{turn}-{len(found[name])}-{name[:12]}", manifest)
                    run.submit(*FLAGS, nodes=nodes, environment=CHECKED | {"SPARE_NODES": str(spares)})
                    run.reaches(100)
                    strike(cluster, run)
                    run.ends_as("COMPLETED", 300)
                    found[name].append(gap_s(run))
                    print(f"{name}: {found[name][-1]:.1f} s", file=sys.stderr, flush=True)
                    cluster.restore()
    print_conditions("torch", "deepspeed")
    print("| fault | median, s | smallest to largest, s |\n|---|---|---|")
    for name, gaps in found.items():
        print(f"| {name} | {median(gaps):.1f} | {min(gaps):.1f} to {max(gaps):.1f} |")


if __name__ == "__main__":
    fire.Fire(main)
