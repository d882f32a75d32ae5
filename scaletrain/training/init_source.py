"""Where a new run gets its first weights from: another run's checkpoint, found and checked before torch is loaded."""

import json
from dataclasses import dataclass
from pathlib import Path

from scaletrain.checkpoint.layout import CONFIG, STATE, step_of
from scaletrain.checkpoint.verify import Level, find_damage, require_checkpoint
from scaletrain.config.fields import flatten
from scaletrain.config.load import load_config
from scaletrain.config.schema import RunConfig
from scaletrain.errors import CheckpointError, ConfigError
from scaletrain.launch.identity import read_identity

# Of the model these change no weight, and another length only where positions are learned.
_FREE = ("model.preset", "model.dropout", "model.attention_dropout", "model.init_std", "model.rope_theta")


@dataclass(frozen=True)
class InitSource:
    """A checkpoint whose weights a run begins with.

    Attributes:
        folder: The checkpoint.
        step: Its step.
    """

    folder: Path
    step: int


def find_source(init: str, level: Level) -> InitSource:
    """Finds the checkpoint that ``--init RUN[@STEP]`` names.

    Args:
        init: A run directory, a folder of checkpoints, or a checkpoint; with ``@STEP`` that step, else the newest
            intact one.
        level: How much of it is checked.

    Returns:
        The checkpoint.

    Raises:
        ConfigError: There is no such run or step, or it is damaged.
    """
    name, _, step_text = init.rpartition("@") if "@" in init else (init, "", "")
    if step_text and not step_text.isdecimal():
        raise ConfigError(f"init: {init}: {step_text} is no step; give RUN or RUN@STEP, with a whole number")
    place = Path(name).expanduser()
    if not place.is_dir():
        raise ConfigError(f"init: {place} is no folder; give the directory of a run that has saved a checkpoint")
    try:
        if step_of(place) is not None and not step_text:
            damage = find_damage(place, level)
            if damage is not None:
                raise ConfigError(f"init: {place}: {damage}; choose another one")
            folder = place
        else:
            checkpoints = place / "checkpoints" if (place / "checkpoints").is_dir() else place
            folder = require_checkpoint(checkpoints, int(step_text) if step_text else None, level)
    except CheckpointError as error:
        raise ConfigError(f"init: {error}") from None
    return InitSource(folder.absolute(), step_of(folder) or 0)


def check_source(source: InitSource, config: RunConfig, tokenizer_hash: str) -> None:
    """Compares a checkpoint's model with the one that is to begin with it.

    Args:
        source: The checkpoint.
        config: The new run's configuration.
        tokenizer_hash: Of the new run's corpus.

    Raises:
        ConfigError: They differ in what the weights depend on; lists all of it.
    """
    try:
        theirs = flatten(load_config(source.folder / CONFIG, {}))
        json.loads((source.folder / STATE).read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"init: {source.folder} cannot be read: {error}") from None
    ours = flatten(config)
    free = (*_FREE, *(() if config.model.positions == "learned" else ("model.max_seq_len",)))
    keys = [key for key in ours if key.startswith("model.") and key not in free]
    problems = [f"{key}: {theirs[key]} there, {ours[key]} here" for key in keys if theirs[key] != ours[key]]
    run_dir = source.folder.parent.parent
    identity = read_identity(run_dir / "identity.json")
    theirs_tokenizer = None if identity is None else identity.fixed.get("tokenizer")
    if theirs_tokenizer not in (None, tokenizer_hash):
        problems.append(
            f"tokenizer: {str(theirs_tokenizer)[:12]} there, {tokenizer_hash[:12]} here; make the corpus with "
            f"--tokenizer {run_dir / 'tokenizer.json'}"
        )
    if problems:
        told = "".join(f"\n  {problem}" for problem in problems)
        raise ConfigError(f"init: the weights of {source.folder} do not fit this run:{told}")
