"""Tiny runs, started as a user or a scheduler starts them: as processes, from a configuration in a file."""

import json
import random
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Union

from scaletrain.corpus.build import build_corpus
from scaletrain.corpus.documents import find_corpus
from scaletrain.launch.events import read_events
from scaletrain.launch.verdicts import read_verdicts
from scaletrain.monitors.jsonl_writer import read_metrics
from tests.chaos.fork_server import Forked, shared_server
from tests.processes import ENVIRONMENT, ROOT, eventually

TRAIN = ROOT / "scaletrain" / "train.py"
MAKE_SHARDS = ROOT / "tools" / "make_shards.py"

CONFIG = """
run_dir: {run_dir}
seed: 7
deepspeed: configs/ds/zero2.json
model: {{vocab_size: 320, d_model: 32, n_layers: 2, n_heads: 2, max_seq_len: 32}}
data: {{manifest: {manifest}, num_workers: 1}}
optim: {{lr: 3e-3, warmup_steps: 2, decay_steps: 200}}
train: {{max_seq_len: 32, global_batch_size: 8, micro_batch_size: 2, precision: fp32, max_steps: 12}}
eval: {{every_steps: 4, max_sequences: 8, prompts: ["alpha"], sample_tokens: 4}}
checkpoint: {{every_steps: 4, keep_last: 2}}
log: {{every_steps: 1}}
"""


def build_tiny_corpus(folder: Path) -> Path:
    """Builds a corpus of several small shards, and returns its manifest."""
    texts = folder / "texts"
    texts.mkdir()
    source = random.Random(11)
    words = ["alpha", "beta", "gamma", "delta", "\n", "def f(x):\n", "return", "été", "1234"]
    for number in range(300):
        (texts / f"{number:03d}.txt").write_text(" ".join(source.choices(words, k=source.randint(5, 90))))
    return build_corpus(
        find_corpus(texts).documents, folder / "corpus", 300, "invented", validation_share=0.1, shard_tokens=4000
    )


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def python(
    *command: object,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = 90,
    folder: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs a program of the project to its end, forked where torch is loaded; its output and errors come together."""
    with tempfile.TemporaryDirectory() as place:
        output = Path(place) / "output.txt"
        words = list(map(str, command))
        process = shared_server().start(
            words, ENVIRONMENT | dict(environment or {}), output, Path.cwd() if folder is None else folder
        )
        try:
            code = process.wait(timeout_s)
        finally:
            process.kill()
        return subprocess.CompletedProcess(words, code, output.read_text())


def fresh_python(
    *command: object, environment: Mapping[str, str] | None = None, timeout_s: float = 90
) -> subprocess.CompletedProcess[str]:
    """Runs what ``python`` runs as a user does: an interpreter that has nothing loaded."""
    return subprocess.run(
        [sys.executable, *map(str, command)],
        env=ENVIRONMENT | dict(environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
    )


Started = Union["subprocess.Popen[str]", Forked]


@dataclass
class TinyRun:
    """A run of the tiny model in a folder of its own."""

    folder: Path
    manifest: Path
    started: list[Started] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.run_dir = self.folder / "run"
        self.config = self.folder / "tiny.yaml"
        self.config.write_text(CONFIG.format(run_dir=self.run_dir, manifest=self.manifest))

    def alone(self, *flags: object, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Runs one process without a launcher to its end."""
        return python(TRAIN, "--config", self.config, *flags, environment=environment)

    def start_deepspeed(self, *flags: object) -> Started:
        """Starts two ranks by the launcher, and returns at once."""
        launcher = shutil.which("deepspeed", path=str(Path(sys.executable).parent)) or "deepspeed"
        command = ["--num_gpus", 2, "--master_port", free_port(), TRAIN, "--config", self.config, *flags]
        return self._start("launch", command, ENVIRONMENT, through=[launcher])

    def start_ranks(
        self,
        world_size: int,
        *flags: object,
        only: int | None = None,
        environment: Mapping[str, str] | None = None,
        name: str = "rank",
        through: Sequence[str] = (),
        script: Path = TRAIN,
    ) -> list[Started]:
        """Starts ranks as a scheduler that is its own launcher does, or only one of them, and returns at once.

        They are forked where torch is loaded, unless a command is named ``through`` which they are to be started, or
        libraries that only the start of a process finds.
        """
        if "LD_LIBRARY_PATH" in (environment or {}):
            through = through or (sys.executable,)
        port = str(free_port())
        shared = {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1"}
        return [
            self._start(
                f"{name}-{rank}",
                [script, "--config", self.config, *flags],
                ENVIRONMENT
                | shared
                | {"MASTER_PORT": port, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                | dict(environment or {}),
                through,
            )
            for rank in (range(world_size) if only is None else (only,))
        ]

    def _start(
        self, name: str, command: Sequence[object], environment: dict[str, str], through: Sequence[str]
    ) -> Started:
        if not through:
            words = list(map(str, command))
            self.started.append(shared_server().start(words, environment, self.output_of(name)))
            return self.started[-1]
        # Into a file, not a pipe: a process that is left over must not keep the test waiting.
        with self.output_of(name).open("w") as output:
            process = subprocess.Popen(
                list(map(str, [*through, *command])),
                env=environment,
                cwd=self.folder,
                stdout=output,
                stderr=output,
                text=True,
            )
        self.started.append(process)
        return process

    def output_of(self, name: str) -> Path:
        """File with all that a started process printed."""
        return self.folder / f"{name}.txt"

    def wait_for_step(self, step: int, attempt: int, within_s: float = 60) -> None:
        """Waits until an attempt has trained a step."""

        def there() -> bool:
            path = self.run_dir / "metrics.jsonl"
            return path.exists() and any(
                line["step"] >= step and line["attempt"] == attempt and "train/loss" in line
                for line in read_metrics(path)
            )

        eventually(there, within_s, lambda: f"step {step} of attempt {attempt}: {self._outputs()}")

    def curve(self, *names: str) -> list[tuple[Any, ...]]:
        """What metrics.jsonl says of each step; a name that a step lacks is None."""
        lines = read_metrics(self.run_dir / "metrics.jsonl")
        return [tuple(line.get(name) for name in ("step", *names)) for line in lines if "train/loss" in line]

    def verdicts(self, attempt: int) -> list[str]:
        """Verdicts of an attempt, by rank."""
        return [content["verdict"] for content in read_verdicts(self.run_dir, attempt).values()]

    def events(self, attempt: int) -> list[str]:
        """Kinds of the events of an attempt, in order."""
        found = [event for event in read_events(self.run_dir / "events.jsonl") if event.get("attempt") == attempt]
        return [event["event"] for event in found]

    def pid_of(self, attempt: int, rank: int) -> int:
        """Where a signal for the rank goes, as the run directory says."""
        return int(json.loads((self.run_dir / "exit" / str(attempt) / f"{rank}.pid").read_text())["pid"])

    def _outputs(self) -> str:
        return "\n".join(path.read_text()[-2000:] for path in sorted(self.folder.glob("*.txt")))


NewRun = Callable[[str], TinyRun]
