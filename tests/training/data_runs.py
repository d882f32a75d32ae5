"""Whole runs over tiny corpora, started and gone on with in ranks that stay alive, as train.py would start them."""

import json
import logging
import multiprocessing
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal
from unittest.mock import patch

import torch.distributed as dist

from scaletrain.config.derive import check
from scaletrain.config.load import dump_yaml, load_config
from scaletrain.config.schema import RunConfig
from scaletrain.data.dataset import SequenceDataset
from scaletrain.data.manifest import Manifest
from scaletrain.data.shard_index import ShardIndex, index_path
from scaletrain.errors import ScaletrainError
from scaletrain.launch.endings import record_ending
from scaletrain.launch.events import read_events
from scaletrain.launch.run_dir import RunDirectory
from scaletrain.launch.verdicts import Ending, read_verdicts
from scaletrain.monitors.jsonl_writer import read_metrics
from scaletrain.protocols import SkippedShard
from scaletrain.ranks import from_environment
from scaletrain.training import run
from scaletrain.training.corpus import EventReport, bind_folder, open_corpora
from scaletrain.training.datasets import training_dataset
from tests.distributed import run_on_ranks
from tests.training.bodies import keep_signal_handlers
from tests.training.mishaps import Mishap, mishaps

T = 16
STEPS = 12
SOURCES = ("web", "books")
# Steps 1 to 5 take 6 sequences, the others 8; the weights change in the middle of a step.
CONFIG = """
run_dir: {run_dir}
seed: 5
deepspeed: configs/ds/zero1.json
model: {{vocab_size: 320, d_model: 16, n_layers: 1, n_heads: 2, max_seq_len: 16}}
data:
  sources:
  - {{name: web, manifest: {base}/web/manifest.json, weight: 3}}
  - {{name: books, manifest: {base}/books/manifest.json}}
  phases:
  - {{until_tokens: 544, weights: {{web: 1, books: 2}}}}
  num_lanes: 2
  window_shards: 2
  num_workers: 0
  cache_dir: {cache_dir}
  fetch_stall_s: 5
optim: {{lr: 1e-9, warmup_steps: 0, schedule: constant, weight_decay: 0}}
train:
  max_seq_len: 16
  global_batch_size: 8
  batch_schedule:
  - {{until_tokens: 480, global_batch_size: 6}}
  micro_batch_size: 2
  precision: fp32
  max_steps: 12
eval: {{every_steps: 0, max_sequences: 8, sample_tokens: 1}}
checkpoint: {{every_steps: 0, keep_last: 9}}
log: {{every_steps: 100, writers: []}}
"""

Damage = Literal["token", "truncated", "deleted", "index"]


@dataclass
class DataRun:
    """A run in a folder of its own.

    Attributes:
        folder: An existing folder.
        base: The folder, or the URL, that has the corpora.
        overrides: Of the configuration, for each start.
        environment: Variables of its ranks.
    """

    folder: Path
    base: str | Path
    overrides: Mapping[str, object] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    template: ClassVar[str] = CONFIG

    def __post_init__(self) -> None:
        self.run_dir = self.folder / "run"
        self.yaml = self.folder / "run.yaml"
        self.yaml.write_text(
            self.template.format(run_dir=self.run_dir, base=self.base, cache_dir=self.folder / "cache"),
            encoding="utf-8",
        )

    def start(
        self,
        world_size: int,
        damages: Sequence[tuple[str, Damage]] = (),
        mishap: Mishap | None = None,
        **overrides: object,
    ) -> tuple[str, ...]:
        """Starts the run, or goes on with it.

        Args:
            world_size: Number of ranks.
            damages: Shards that are damaged once the start has checked them, before anything is read.
            mishap: What goes wrong with sequences.
            **overrides: Values by key, with two underscores for the point.

        Returns:
            For each rank the verdict, or the kind of the error and its message.
        """
        given = {**self.overrides, **{key.replace("__", "."): value for key, value in overrides.items()}}
        texts = {key: str(value) for key, value in given.items()}
        return tuple(run_on_ranks(world_size, _start, str(self.yaml), texts, dict(self.environment), damages, mishap))

    def complete(
        self,
        world_size: int,
        damages: Sequence[tuple[str, Damage]] = (),
        mishap: Mishap | None = None,
        **overrides: object,
    ) -> None:
        """Starts the run, or goes on with it, to its end."""
        assert self.start(world_size, damages, mishap, **overrides) == ("complete",) * world_size

    def forget_checkpoints_behind(self, step: int) -> None:
        """Makes the next start go on at that step, or at the last one saved before."""
        for folder in (self.run_dir / "checkpoints").glob("step_*"):
            if int(folder.name.removeprefix("step_")) > step:
                shutil.rmtree(folder)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What metrics.jsonl says of each step."""
        return [row for row in read_metrics(self.run_dir / "metrics.jsonl") if "data/batch_hash" in row]

    @property
    def hashes(self) -> list[str]:
        """The checksums of the batches, step by step."""
        rows = self.rows
        assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
        return [row["data/batch_hash"] for row in rows]

    @property
    def ends(self) -> list[int]:
        """The sequences consumed after each step."""
        return [int(row["data/sequences"]) for row in self.rows]

    def events(self, kind: str) -> list[dict[str, Any]]:
        """The run's events of a kind."""
        return [event for event in read_events(self.run_dir / "events.jsonl") if event["event"] == kind]

    def blamed(self, attempt: int) -> list[list[str] | None]:
        """The machines that each rank's verdict blames; None where it blames none."""
        return [verdict.get("hosts") for verdict in read_verdicts(self.run_dir, attempt).values()]

    @property
    def warnings(self) -> list[str]:
        """What rank 0 warned of in the last start."""
        return (self.folder / "warnings.txt").read_text().splitlines()

    @property
    def config(self) -> RunConfig:
        """The configuration of the first start."""
        return load_config(self.yaml, {key: str(value) for key, value in self.overrides.items()})

    def dataset(self, skipped: Sequence[SkippedShard] = ()) -> SequenceDataset:
        """The run's sequences, as one process without a loader reads them."""
        return training_dataset(self.config, open_corpora(self.config), skipped)

    def saved_skips(self, step: int) -> list[dict[str, Any]]:
        """The shards that the checkpoint of a step says were left out."""
        state = self.run_dir / "checkpoints" / f"step_{step:08d}" / "state.json"
        return list(json.loads(state.read_text())["training"]["skipped"])


def batch_hashes(dataset: SequenceDataset, ends: Sequence[int]) -> list[str]:
    """The checksums of steps that end where they are told to, sequence by sequence."""
    begins = [0, *ends[:-1]]
    return [
        f"{sum(dataset.micro_batch([i])['checksum'] for i in range(*step)) % 2**64:016x}"
        for step in zip(begins, ends, strict=True)
    ]


def shard_path(base: Path, source: str, shard: int) -> Path:
    """The tar of a shard of a source's training split."""
    return base / source / Manifest.open(base / source).split("train")[shard].path


def damage(path: Path, how: Damage) -> None:
    """Damages a shard as disks and people do."""
    if how == "deleted":
        path.unlink()
    elif how == "truncated":
        os.truncate(path, path.stat().st_size // 2)
    elif how == "index":
        index_path(path).write_bytes(b"no index")
    else:
        # In the middle, where no short look finds it: the run meets it when it comes to this token.
        index = ShardIndex.read(index_path(path))
        with path.open("rb+") as stream:
            stream.seek(int(index.offsets[len(index.offsets) // 2]) + 2)
            stream.write(b"\xff\xff")


def first_touched(dataset: SequenceDataset, source: str, shard: int, how: Damage) -> int:
    """The first sequence of the run that cannot be read with the shard damaged so."""
    order, number = dataset.order, dataset.names.index(source)
    broken = dataset.readers[number].shards[shard].documents // 2
    for sequence in range(10_000):
        location = order.locate(sequence)
        pieces = [piece for piece in order.pieces(sequence) if (piece.source, piece.shard) == (number, shard)]
        if how == "index" and location.source == number and shard in order.members(location):
            return sequence
        if how == "token" and any(piece.document == broken and piece.start <= 1 < piece.stop for piece in pieces):
            return sequence
        if how in ("deleted", "truncated") and pieces:
            return sequence
    raise AssertionError("no sequence has it")


def _start(
    yaml: str, overrides: dict[str, str], environment: dict[str, str], damages: Sequence[Any], mishap: Mishap | None
) -> str:
    """The body of a rank: what train.py does between its command line and its verdict."""
    ranks = from_environment()
    with (
        patch.dict(os.environ, environment),
        # The ranks of tests are daemons, which multiprocessing allows no children; the workers die with their rank.
        patch.dict(multiprocessing.current_process()._config, daemon=False),  # type: ignore[attr-defined]
        keep_signal_handlers(),
        _warnings(Path(yaml), ranks.rank),
    ):
        folder: RunDirectory | None = None
        attempt: list[int | None] = [None]
        try:
            config = load_config(Path(yaml), overrides)
            check(config)
            folder = RunDirectory(config.run_dir)
            attempt = [folder.claim() if ranks.is_main else None]
            dist.broadcast_object_list(attempt)
            corpora = open_corpora(config, EventReport(folder.events, ranks.rank), ranks.local_world_size)
            # The others would go on while it refuses: in a run the launcher ends them.
            refusal = [_bind(folder, config, corpora) if ranks.is_main else ""]
            dist.broadcast_object_list(refusal)
            if refusal[0]:
                return str(refusal[0])
            for path, how in damages if ranks.is_main else ():
                damage(Path(path), how)
            dist.barrier()
            begun = run.Start(int(attempt[0] or 0), None, False)
            # What a rank can compute is measured, for a metric that nobody looks at here.
            dataset = training_dataset(config, corpora)
            with patch.object(run, "find_peak", lambda train: None), mishaps(mishap, dataset):
                return run.train(config, corpora, folder, begun, ranks).verdict.value
        except ScaletrainError as error:
            if folder is not None and attempt[0] is not None:
                record_ending(folder, attempt[0], ranks, Ending.of_error(error))
            return _told(error)
        finally:
            if folder is not None and ranks.is_main:
                folder.release()


def _bind(folder: RunDirectory, config: RunConfig, corpora: Any) -> str:
    try:
        bind_folder(folder, config, corpora)
        folder.describe(dump_yaml(config))
    except ScaletrainError as error:
        return _told(error)
    return ""


def _told(error: ScaletrainError) -> str:
    return f"{type(error).__name__}: {error}"


@contextmanager
def _warnings(yaml: Path, rank: int) -> Iterator[None]:
    if rank != 0:
        yield
        return
    handler = logging.FileHandler(yaml.with_name("warnings.txt"), mode="w")
    handler.setLevel(logging.WARNING)
    logger = logging.getLogger("scaletrain")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


def cache_of_half_the_shards(base: Path) -> float:
    """GiB that hold half of the shards' bytes."""
    return sum(path.stat().st_size for path in base.glob("*/*.tar")) / 2 / 2**30
