"""Runs of the tiny model as Slurm jobs, submitted as a user submits them."""

import json
import os
import re
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scaletrain.launch.events import read_events
from scaletrain.launch.verdicts import read_verdicts
from scaletrain.monitors.jsonl_writer import read_metrics
from tests.integration.runs import CONFIG, ROOT
from tests.processes import eventually
from tests.slurm.cluster import Cluster

PRETRAIN = ROOT / "slurm" / "pretrain.sh"

# The CPU stands in for the GPUs that the jobs ask for; one thread a rank, since all nodes share two cores.
ENVIRONMENT = {
    "DS_ACCELERATOR": "cpu",
    "OMP_NUM_THREADS": "1",
    "PREFLIGHT": "off",
    "TOKENIZERS_PARALLELISM": "false",
    "BACKOFF_S": "1",
}
STEPS = 300
SAVED_EVERY = 60
FLAGS = ("--train.max_steps", STEPS, "--checkpoint.every_steps", SAVED_EVERY, "--eval.every_steps", 150)


class SlurmRun:
    """A run directory, and the jobs that train in it."""

    def __init__(self, cluster: Cluster, folder: Path, manifest: Path) -> None:
        self.cluster, self.folder = cluster, folder
        folder.mkdir(parents=True)
        self.run_dir = folder / "runs" / "tiny"
        self.config = folder / "tiny.yaml"
        text = CONFIG.format(run_dir="runs/tiny", manifest=manifest).replace("configs/ds", str(ROOT / "configs" / "ds"))
        self.config.write_text(text.replace('prompts: ["alpha"]', "prompts: []"))
        self.ledger = folder / "ledger"
        self.job_id = ""

    def submit(
        self,
        *flags: object,
        options: tuple[object, ...] = (),
        nodes: int = 2,
        script: Path = PRETRAIN,
        environment: Mapping[str, str] | None = None,
    ) -> str:
        """Submits the script for some nodes, and returns the job's number."""
        environment = ENVIRONMENT | {"NODE_LEDGER": str(self.ledger)} | dict(environment or {})
        given = ("-N", nodes, "--gpus-per-node=1", "-t", "10", *options)
        arguments = ("--config", self.config, *FLAGS, *flags)
        self.job_id = self.cluster.sbatch(*given, script, *arguments, cwd=self.folder, environment=environment)
        return self.job_id

    @property
    def log(self) -> str:
        """What the jobs have printed."""
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("*.log")))

    def ends_as(self, state: str, within_s: float = 300, start_now: bool = False) -> None:
        """Waits until the job is over."""

        def over() -> bool:
            job = self.cluster.job(self.job_id)
            if start_now and job["JobState"] == "PENDING":
                self.cluster.start_now(self.job_id)
            return job["JobState"] == state

        eventually(over, within_s, lambda: f"{state}: {self.cluster.job(self.job_id)}\n{self.log[-6000:]}")

    def reaches(self, step: int, within_s: float = 150) -> None:
        """Waits until a step was trained."""

        def there() -> bool:
            path = self.run_dir / "metrics.jsonl"
            return path.exists() and any(line["step"] >= step and "train/loss" in line for line in read_metrics(path))

        eventually(there, within_s, lambda: f"step {step}: {self.cluster.job(self.job_id)}\n{self.log[-6000:]}")

    def losses(self) -> list[tuple[int, float]]:
        """The loss of each step, in full precision."""
        lines = read_metrics(self.run_dir / "metrics.jsonl")
        return [(line["step"], line["train/loss"]) for line in lines if "train/loss" in line]

    def journal(self, event: str) -> list[dict[str, Any]]:
        """What the supervisors noted of one kind."""
        return [line for line in read_events(self.run_dir / "job.jsonl") if line["event"] == event]

    def actions(self) -> list[str]:
        return [line["action"] for line in self.journal("decision")]

    def nodes(self) -> list[list[str]]:
        """Nodes of each launch."""
        return [line["nodes"] for line in self.journal("launch")]

    def attempts(self) -> list[int]:
        return sorted(int(path.name) for path in (self.run_dir / "exit").glob("*") if path.name.isdigit())

    def verdicts(self, attempt: int) -> list[str]:
        return [content["verdict"] for content in read_verdicts(self.run_dir, attempt).values()]

    def pid_of(self, node: str, rank: int) -> int:
        """A rank's process, by its number outside of the node."""
        newest = max(self.attempts())
        inside = json.loads((self.run_dir / "exit" / str(newest) / f"{rank}.pid").read_text())["pid"]
        for pid in self.cluster.pids_of(node, "train.py"):
            numbers = re.search(r"NSpid:(.*)", Path(f"/proc/{pid}/status").read_text())
            if numbers is not None and int(numbers[1].split()[-1]) == inside:
                return pid
        raise AssertionError(f"rank {rank} is not on {node}: {os.listdir(self.run_dir / 'exit' / str(newest))}")

    def kill_rank(self, rank: int) -> None:
        """Kills a rank once its launch has trained a step."""
        attempt = max(self.attempts())
        trained = self.run_dir / "exit" / str(attempt) / "trained"
        eventually(trained.exists, 60, lambda: f"{trained}\n{self.log[-3000:]}")
        nodes = self.nodes()[-1]
        os.kill(self.pid_of(nodes[rank * len(nodes) // 2 if len(nodes) > 1 else 0], rank), signal.SIGKILL)
