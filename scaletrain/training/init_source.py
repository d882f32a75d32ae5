"""Where a new run gets its first weights from: another run's checkpoint, found and checked before torch is loaded."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaletrain.checkpoint.layout import COMPLETE, CONFIG, STATE, list_checkpoints, step_of
from scaletrain.checkpoint.verify import Level, find_damage, require_checkpoint
from scaletrain.config.fields import flatten
from scaletrain.config.init_model import split_init
from scaletrain.config.load import load_config
from scaletrain.config.schema import RunConfig
from scaletrain.errors import CheckpointError, ConfigError
from scaletrain.launch.identity import read_identity
from scaletrain.protocols import Step

# Of the model these change no weight, and another length only where positions are learned.
_FREE = (
    "model.preset",
    "model.dropout",
    "model.attention_dropout",
    "model.init_std",
    "model.rope_theta",
    "model.rope_scaling",
    "model.rope_factor",
    "model.rope_low_freq_factor",
    "model.rope_high_freq_factor",
    "model.rope_original_max_seq_len",
    "model.sliding_window",
    "model.sliding_window_from_layer",
    # Heads, and what is seen by whom: weights that one side lacks are looked at when they are loaded.
    "model.causal",
    "model.pooling",
    "model.pooler",
    "model.n_classes",
    "model.n_segments",
    "model.output_transform",
    "model.output_bias",
    "model.tie_embeddings",
    # More rows than there are begin at the mean of those.
    "model.vocab_size",
)


@dataclass(frozen=True)
class CorpusTokenizer:
    """The tokenizer of a run's corpus.

    Attributes:
        sha256: Its hash.
        read: Reads its ``tokenizer.json``.
    """

    sha256: str
    read: Callable[[], bytes]


@dataclass(frozen=True)
class InitSource:
    """A checkpoint whose weights a run begins with.

    Attributes:
        folder: The checkpoint.
        step: Its step.
    """

    folder: Path
    step: int


def choose_sources(config: RunConfig, tokenizer: CorpusTokenizer | None, level: Level) -> tuple[InitSource, ...]:
    """Finds the checkpoints that a run may begin with, and checks that the first one fits it.

    Args:
        config: The new run's configuration.
        tokenizer: Of the new run's corpus; None where that is not prepared yet.
        level: How much of each checkpoint is checked.

    Returns:
        The one to try first comes first; none where the run begins with weights of its own.

    Raises:
        ConfigError: There is no such run or step, it is damaged, or its model or tokenizer is another.
    """
    if config.init is None:
        return ()
    try:
        sources = find_sources(config.init, level)
        check_source(sources[0], config, tokenizer)
    except OSError as error:
        raise ConfigError(
            f"init: {config.init} cannot be read: {error}; give a folder that this user may read"
        ) from None
    return sources


def find_sources(init: str, level: Level) -> tuple[InitSource, ...]:
    """Finds the checkpoints that ``--init RUN[@STEP]`` names.

    Args:
        init: A run directory, a folder of checkpoints, or a checkpoint; with ``@STEP`` that step, else all intact ones.
        level: How much of each is checked.

    Returns:
        At least one; the newest first.

    Raises:
        ConfigError: There is no such run or step, or it is damaged.
    """
    place, step = _place_of(init)
    try:
        if step is None and (step_of(place) is not None or (place / COMPLETE).exists()):
            folders = [_intact(place, level)]
        else:
            checkpoints = place / "checkpoints" if (place / "checkpoints").is_dir() else place
            there = list_checkpoints(checkpoints) if step is None else []
            intact = [folder for folder in there if find_damage(folder, level) is None]
            folders = intact or [require_checkpoint(checkpoints, step, level)]
    except CheckpointError as error:
        raise ConfigError(f"init: {error}") from None
    return tuple(InitSource(folder.absolute(), _held_step(folder)) for folder in folders)


def check_source(source: InitSource, config: RunConfig, tokenizer: CorpusTokenizer | None) -> None:
    """Compares a checkpoint's model and tokenizer with those of the run that is to begin with it.

    Args:
        source: The checkpoint.
        config: The new run's configuration.
        tokenizer: Of the new run's corpus; None where it is not known.

    Raises:
        ConfigError: They differ in what the weights depend on; lists all of it.
    """
    try:
        theirs = flatten(load_config(source.folder / CONFIG, {}))
    except ConfigError as error:
        raise ConfigError(f"init: the configuration in {source.folder} cannot be used: {error}") from None
    problems = [*_model_problems(theirs, flatten(config)), *_tokenizer_problems(source, tokenizer)]
    if problems:
        told = "".join(f"\n  {problem}" for problem in problems)
        raise ConfigError(f"init: the weights of {source.folder} do not fit this run:{told}")


def _model_problems(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterator[str]:
    free = (*_FREE, *(() if ours["model.positions"] == "learned" else ("model.max_seq_len",)))
    for key in (key for key in ours if key.startswith("model.") and key not in free):
        if theirs[key] != ours[key]:
            yield f"{key}: {theirs[key]} there, {ours[key]} here"
    there, here = (side["model.vocab_size"] for side in (theirs, ours))
    if there > here:
        yield f"model.vocab_size: {there} there, {here} here: rows would be lost"
    there, here = (side["model.n_segments"] for side in (theirs, ours))
    if there and here not in (0, there):
        yield f"model.n_segments: {there} there, {here} here"


def _tokenizer_problems(source: InitSource, tokenizer: CorpusTokenizer | None) -> Iterator[str]:
    run_dir = source.folder.parent.parent
    identity = read_identity(run_dir / "identity.json")
    theirs = None if identity is None else identity.fixed.get("tokenizer")
    if theirs is None or tokenizer is None or theirs == tokenizer.sha256:
        return
    file = run_dir / "tokenizer.json"
    old = file.read_bytes() if file.is_file() else b""
    if hashlib.sha256(old).hexdigest() != theirs or not _extends(old, tokenizer.read()):
        yield (
            f"tokenizer: {str(theirs)[:12]} there, {tokenizer.sha256[:12]} here; make the corpus with "
            f"--tokenizer {file}, or with one that has tokens added to it"
        )


def _extends(old: bytes, new: bytes) -> bool:
    """Whether a tokenizer is another one with tokens added: each old token keeps its number, and what joins them."""
    try:
        before, after = json.loads(old), json.loads(new)
        kept = {token["content"]: token["id"] for token in after["added_tokens"]}
        return before["model"] == after["model"] and all(
            kept.get(token["content"]) == token["id"] for token in before["added_tokens"]
        )
    except (ValueError, KeyError, TypeError):
        return False


def _place_of(init: str) -> tuple[Path, Step | None]:
    place, step = split_init(init)
    if not place.is_dir():
        raise ConfigError(f"init: {place} is no folder; give the directory of a run that has saved a checkpoint")
    return place, step


def _intact(folder: Path, level: Level) -> Path:
    if not (folder / COMPLETE).exists():
        raise CheckpointError(f"{folder} is no complete checkpoint: {COMPLETE} is missing. Choose another one.")
    damage = find_damage(folder, level)
    if damage is not None:
        raise CheckpointError(f"{folder}: {damage}. Choose another one.")
    return folder


def _held_step(folder: Path) -> int:
    """The step, also of a checkpoint that was given another name."""
    named = step_of(folder)
    if named is not None:
        return named
    try:
        return int(json.loads((folder / STATE).read_text())["training"]["step"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"init: {folder / STATE} cannot be read: {error}; choose another checkpoint") from None
