"""Opens the corpora of a run; without torch, so that a mistake is told at once."""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from scaletrain.config.schema import DataConfig, RunConfig
from scaletrain.config.task_rules import head_problem
from scaletrain.data.corpus_facts import CorpusFacts
from scaletrain.data.manifest import Manifest
from scaletrain.data.mixture import Phase
from scaletrain.data.order import DatasetOptions, order_of
from scaletrain.data.shards import ShardReader
from scaletrain.data.tokenizer import parse_tokenizer, token_byte_lengths
from scaletrain.errors import ConfigError
from scaletrain.launch.events import append_event
from scaletrain.launch.identity import identity_of
from scaletrain.launch.run_dir import RunDirectory
from scaletrain.storage.fetch import FetchPolicy
from scaletrain.storage.storage import Storage
from scaletrain.storage.urls import is_remote
from scaletrain.training.init_source import CorpusTokenizer, choose_sources

logger = logging.getLogger(__name__)

ONLY_SOURCE = "corpus"
"""Name of the source of a run that has one manifest."""
_GIB = 2**30
_TASKS_OF_TEXT = ("causal_lm", "sft", "seq2seq")


@dataclass(frozen=True)
class Corpora:
    """What a run reads.

    Attributes:
        manifests: Of each source, by its name.
        storage: Opens what they name.
    """

    manifests: Mapping[str, Manifest]
    storage: Storage

    @property
    def first(self) -> Manifest:
        """The manifest of the first source; all have the same tokenizer."""
        return next(iter(self.manifests.values()))

    def read_tokenizer(self) -> Tokenizer:
        """The tokenizer of all sources."""
        return parse_tokenizer(self.first.read_tokenizer(self.storage), self.first.shown)

    @property
    def tokenizer(self) -> CorpusTokenizer:
        """The tokenizer of all sources."""
        return CorpusTokenizer(self.first.tokenizer.sha256, partial(self.first.read_tokenizer, self.storage))

    @property
    def fingerprint(self) -> str:
        """Hash of what determines the data of all sources: the manifest's own where there is one."""
        if len(self.manifests) == 1:
            return self.first.fingerprint
        content = [[name, manifest.fingerprint] for name, manifest in self.manifests.items()]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


class EventReport:
    """Writes what the storage meets into a run's diary, from whatever process meets it."""

    def __init__(self, events: Path, rank: int) -> None:
        """Holds where to write.

        Args:
            events: The run's events.jsonl.
            rank: Of this process, or of the one that it works for.
        """
        self._events = events
        self._rank = rank

    def __call__(self, kind: str, **fields: Any) -> None:
        """Appends an event."""
        try:
            append_event(self._events, kind, rank=self._rank, **fields)
        except OSError as error:
            logger.warning("%s could not be recorded (%s): %s", kind, error.strerror, fields)


def open_storage(data: DataConfig, report: EventReport | None = None, local_world_size: int = 1) -> Storage:
    """The way to what manifests name.

    Args:
        data: How hard to try, and where remote shards are kept.
        report: Gets retries and the like.
        local_world_size: Ranks of this machine, which share the cache.

    Returns:
        The storage; nothing is opened or made yet.
    """
    policy = FetchPolicy(data.fetch_attempts, data.fetch_stall_s, allow_pipe=data.allow_pipe)
    # Ranks that share a lane want the same shards.
    sharers = min(local_world_size, data.num_lanes)
    return Storage(policy, data.cache_dir or _default_cache(), int(data.cache_gib * _GIB), report, sharers)


def _default_cache() -> Path:
    """A folder of this user: what lies in it is read without being looked at again."""
    folder = Path(tempfile.gettempdir()) / f"scaletrain-cache-{os.getuid()}"
    if folder.is_symlink() or (folder.exists() and folder.stat().st_uid != os.getuid()):
        raise ConfigError(f"{folder}, the default of data.cache_dir, belongs to somebody else. Give --data.cache_dir.")
    return folder


def open_corpora(config: RunConfig, report: EventReport | None = None, local_world_size: int = 1) -> Corpora:
    """Opens the manifests, preparing an embedded corpus first where that was asked for.

    Args:
        config: The run's configuration, checked.
        report: Gets retries of remote reads and the like.
        local_world_size: Ranks of this machine.

    Returns:
        The corpora.

    Raises:
        ConfigError: The tokenizer has more tokens than the model.
        DataError: A corpus cannot be used.
    """
    data = config.data
    storage = open_storage(data, report, local_world_size)
    locations = {source.name: source.manifest for source in data.sources}
    if data.manifest is not None:
        locations = {ONLY_SOURCE: data.manifest}
    elif not locations:
        # Here, since what writes shards brings torch with it, and who gives a manifest needs none of it.
        from scaletrain.corpus.embedded import prepare_python_stdlib

        locations = {ONLY_SOURCE: str(prepare_python_stdlib(data.corpus_dir, config.model.vocab_size))}
    may_lack = data.on_bad_shard == "skip"
    manifests = {name: Manifest.open(location, storage, may_lack) for name, location in locations.items()}
    for manifest in manifests.values():
        manifest.split("train")
        _check_vocabulary(manifest, config.model.vocab_size)
        _check_task(manifest, config.task.name, config.train.max_seq_len)
    return Corpora(manifests, storage)


def _check_vocabulary(manifest: Manifest, vocab_size: int) -> None:
    needed = manifest.tokenizer.vocab_size
    if needed > vocab_size:
        raise ConfigError(
            f"model.vocab_size is {vocab_size}, but the tokenizer of {manifest.shown} has {needed} tokens. "
            f"Set --model.vocab_size {-(-needed // 64) * 64} or more."
        )


def _check_task(manifest: Manifest, task: str, max_seq_len: int) -> None:
    """Refuses a corpus whose documents do not have what a task reads."""
    lacks, remedy = "", ""
    if task in ("sft", "seq2seq") and not manifest.parts:
        lacks, remedy = "parts, such as question and answer", "--format chat or --format pairs"
    elif task == "classification" and not manifest.classes:
        lacks, remedy = "classes", "--format classes"
    elif task == "regression" and (not manifest.values or manifest.classes):
        lacks, remedy = "numbers", "--format numbers"
    if lacks:
        raise ConfigError(
            f"task {task} reads documents with {lacks}, which those of {manifest.shown} do not have. Build the corpus "
            f"with tools/make_shards.py build {remedy}."
        )
    if task == "seq2seq" and manifest.longest is not None and manifest.longest > max_seq_len + 1:
        raise ConfigError(
            f"train.max_seq_len is {max_seq_len}, but the longest pair of {manifest.shown} has {manifest.longest} "
            f"tokens, whose target would be cut. Set it to {manifest.longest - 1} or more, or build the corpus with "
            "--max_source_tokens and --max_target_tokens."
        )


def _check_head(manifest: Manifest, task: str, n_classes: int) -> None:
    """Refuses a head of another width than the task, which is made when torch is loaded, would refuse then."""
    told = {"classification": (manifest.classes, "classes"), "regression": (manifest.values, "values")}
    if task in told and (problem := head_problem(n_classes, *told[task], manifest.shown)):
        raise ConfigError(problem)


def check_corpora(config: RunConfig, corpora: Corpora) -> None:
    """Finds now what would otherwise be found when the engine is built, or in a worker hours later.

    Args:
        config: The run's configuration.
        corpora: Its sources.

    Raises:
        ConfigError: The sources have different tokenizers, or the model's head is not as wide as the task needs.
        DataError: There are more lanes than shards, a source was not counted for best-fit packing, the tokenizer of a
            task that tells bits per byte is not byte-level, or a shard does not match its index: indexes and edges of
            local shards are looked at.
    """
    _check_head(corpora.first, config.task.name, config.model.n_classes)
    tokenizer = corpora.read_tokenizer()
    if config.task.name in _TASKS_OF_TEXT:
        token_byte_lengths(tokenizer)
    order_of(training_readers(corpora), dataset_options(config))
    for name, manifest in corpora.manifests.items():
        for split, shards in manifest.splits.items():
            reader = ShardReader(manifest, split, corpora.storage, name) if shards else None
            if reader is not None and split == "train" and config.data.on_bad_shard == "skip":
                for problem in reader.find_bad():
                    logger.warning("will be left out when it is met: %s", problem)
            elif reader is not None:
                reader.check()


def training_readers(corpora: Corpora) -> list[ShardReader]:
    """Readers of the training split of each source."""
    return [ShardReader(manifest, "train", corpora.storage, name) for name, manifest in corpora.manifests.items()]


def dataset_options(config: RunConfig) -> DatasetOptions:
    """What the order of a run's training data depends on."""
    data = config.data
    return DatasetOptions(
        config.train.max_seq_len, data.num_lanes, data.window_shards, config.seed, data.packing, data.document_borders
    )


def phases_of(data: DataConfig, max_seq_len: int) -> list[Phase]:
    """The weights of the sources over time, as places of a lane.

    Args:
        data: The run's sources and phases.
        max_seq_len: Inputs of a sequence.

    Returns:
        A phase for each of the configuration, and the last one with the sources' own weights. A phase ends at the first
        place at which all lanes together have consumed its tokens.
    """
    sources = data.sources
    if not sources:
        return [Phase(None, (1.0,))]
    tokens_of_place = max_seq_len * data.num_lanes
    phases = [
        Phase(
            -(-phase.until_tokens // tokens_of_place), tuple(phase.weights.get(source.name, 0.0) for source in sources)
        )
        for phase in data.phases
    ]
    return [*phases, Phase(None, tuple(source.weight for source in sources))]


def bind_folder(folder: RunDirectory, config: RunConfig, corpora: Corpora) -> list[str]:
    """Checks that a run's folder belongs to this run, and keeps in it what using the model needs. For rank 0.

    Args:
        folder: The run's folder, claimed.
        config: The run's configuration.
        corpora: Its sources.

    Returns:
        What changed since the start before, for people.

    Raises:
        ConfigError: The folder belongs to another run, or what it is to begin with does not fit it.
        DataError: A shard does not match its index.
    """
    check_corpora(config, corpora)
    tokenizer = corpora.first.tokenizer
    if not folder.has_trained():
        choose_sources(config, corpora.tokenizer, "off")
    found = folder.bind(identity_of(config, tokenizer.sha256, corpora.fingerprint))
    places = {name: _absolute(manifest.shown) for name, manifest in corpora.manifests.items()}
    CorpusFacts.of(corpora.first).keep(folder.path, sources=places, fingerprint=corpora.fingerprint)
    (folder.path / "tokenizer.json").write_bytes(corpora.first.read_tokenizer(corpora.storage))
    return [f"{change.key}: {change.old} -> {change.new}" for change in found]


def _absolute(location: str) -> str:
    return location if is_remote(location) else str(Path(location).absolute())
