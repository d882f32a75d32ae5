"""Where a new run gets its first weights from: another run's checkpoint, found and checked before torch is loaded."""

import json
from dataclasses import dataclass
from pathlib import Path

from scaletrain.checkpoint.layout import COMPLETE, CONFIG, STATE, list_checkpoints, step_of
from scaletrain.checkpoint.verify import Level, find_damage, require_checkpoint
from scaletrain.config.fields import flatten
from scaletrain.config.load import load_config
from scaletrain.config.schema import RunConfig
from scaletrain.errors import CheckpointError, ConfigError
from scaletrain.launch.identity import read_identity

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
)


@dataclass(frozen=True)
class InitSource:
    """A checkpoint whose weights a run begins with.

    Attributes:
        folder: The checkpoint.
        step: Its step.
    """

    folder: Path
    step: int


def choose_sources(config: RunConfig, tokenizer_hash: str | None, level: Level) -> tuple[InitSource, ...]:
    """Finds the checkpoints that a run may begin with, and checks that the first one fits it.

    Args:
        config: The new run's configuration.
        tokenizer_hash: Of the new run's corpus; None where that is not prepared yet.
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
        check_source(sources[0], config, tokenizer_hash)
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
    place, step = _split(init)
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


def check_source(source: InitSource, config: RunConfig, tokenizer_hash: str | None) -> None:
    """Compares a checkpoint's model and tokenizer with those of the run that is to begin with it.

    Args:
        source: The checkpoint.
        config: The new run's configuration.
        tokenizer_hash: Of the new run's corpus; None where it is not known.

    Raises:
        ConfigError: They differ in what the weights depend on; lists all of it.
    """
    try:
        theirs = flatten(load_config(source.folder / CONFIG, {}))
    except ConfigError as error:
        raise ConfigError(f"init: the configuration in {source.folder} cannot be used: {error}") from None
    ours = flatten(config)
    free = (*_FREE, *(() if config.model.positions == "learned" else ("model.max_seq_len",)))
    keys = [key for key in ours if key.startswith("model.") and key not in free]
    problems = [f"{key}: {theirs[key]} there, {ours[key]} here" for key in keys if theirs[key] != ours[key]]
    run_dir = source.folder.parent.parent
    identity = read_identity(run_dir / "identity.json")
    theirs_tokenizer = None if identity is None else identity.fixed.get("tokenizer")
    if None not in (theirs_tokenizer, tokenizer_hash) and theirs_tokenizer != tokenizer_hash:
        problems.append(
            f"tokenizer: {str(theirs_tokenizer)[:12]} there, {str(tokenizer_hash)[:12]} here; make the corpus with "
            f"--tokenizer {run_dir / 'tokenizer.json'}"
        )
    if problems:
        told = "".join(f"\n  {problem}" for problem in problems)
        raise ConfigError(f"init: the weights of {source.folder} do not fit this run:{told}")


def _split(init: str) -> tuple[Path, int | None]:
    """The place and the step; the name of a folder may hold an @ as well."""
    name, at, step = init.rpartition("@")
    if not at or Path(init).expanduser().is_dir():
        name, step = init, ""
    elif not step.isdecimal():
        raise ConfigError(f"init: {init}: {step or 'nothing'} is no step; give RUN or RUN@STEP, with a whole number")
    place = Path(name).expanduser()
    if not place.is_dir():
        raise ConfigError(f"init: {place} is no folder; give the directory of a run that has saved a checkpoint")
    return place, int(step) if step else None


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
