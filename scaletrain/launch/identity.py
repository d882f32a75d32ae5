"""What makes a run the same run when it is started again, and what may change between two starts."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scaletrain.config.fields import flatten, plain
from scaletrain.config.schema import ModelConfig, RunConfig, SourceConfig
from scaletrain.errors import ConfigError
from scaletrain.files import replace_text

# A change of these would change what the weights, the optimizer's state or a sequence's number mean. Weights and phases
# of a mixture are not among them: they may change for what is not read yet, which only the state of the data can tell.
_FIXED = (
    "seed",
    "task.name",
    "data.num_lanes",
    "data.window_shards",
    "data.packing",
    "data.document_borders",
    "data.sources.name",
    "train.max_seq_len",
    "optim.name",
    "tune.freeze",
    "lora.rank",
    "lora.alpha",
    "lora.targets",
    "lora.also_train",
)
# Of the model everything is fixed but these.
_FREE_OF_MODEL = ("model.preset", "model.dropout", "model.attention_dropout")
_MODEL_KEYS = tuple(f"model.{key}" for key in ModelConfig.model_fields)
# What runs were that wrote their identity before these keys existed.
_BEFORE_THE_KEY = {
    "task.name": "causal_lm",
    "data.packing": "concat",
    "data.sources.name": [],
    "tune.freeze": [],
    "lora.rank": 0,
}


@dataclass(frozen=True)
class Identity:
    """What a run is, as plain JSON values by dotted key.

    Attributes:
        fixed: Must be the same at every start: the model, the data and the tokenizer, and what numbers the sequences.
        free: May change from start to start; a change is an event of the run.
    """

    fixed: dict[str, Any]
    free: dict[str, Any]


@dataclass(frozen=True)
class Change:
    """A value that differs from the start before."""

    key: str
    old: Any
    new: Any


def identity_of(config: RunConfig, tokenizer_hash: str, data_checksum: str) -> Identity:
    """Splits a configuration into what may change between starts and what may not.

    The place of the data is free, its content is not; the run directory itself may be moved. Of the sources of a
    mixture the names and their order are fixed. Their weights and the phases are free here: whether what was read
    already would have been the same with them is for the state of the data to check.

    Args:
        config: The resolved configuration.
        tokenizer_hash: Hash of the tokenizer, from the manifest.
        data_checksum: Checksum of the manifest's content.

    Returns:
        The identity.
    """
    values = {key: plain(value) for key, value in flatten(config).items() if key != "run_dir"}
    sources = values.pop("data.sources")
    values |= {f"data.sources.{key}": [source[key] for source in sources] for key in SourceConfig.model_fields}
    fixed = {key: value for key, value in values.items() if _is_fixed(key)}
    free = {key: value for key, value in values.items() if not _is_fixed(key)}
    return Identity(fixed | {"tokenizer": tokenizer_hash, "data": data_checksum}, free)


def changes(old: Identity, new: Identity, run_dir: Path) -> list[Change]:
    """Compares two starts of a run.

    Args:
        old: Identity of the start before.
        new: Identity of this start.
        run_dir: The run's folder, for the message.

    Returns:
        What changed and may.

    Raises:
        ConfigError: What changed and may not, each with its old and new value.
    """
    forbidden = _differences(old.fixed, new.fixed)
    if forbidden:
        raise ConfigError(
            f"run directory {run_dir} belongs to another run:\n"
            + "".join(f"  {change.key}: {change.old} there, {change.new} here\n" for change in forbidden)
            + "these cannot change within a run; give another --run_dir, or the values it was started with"
        )
    # A key may have been fixed when the start before wrote it down, and be free now.
    return _differences({**old.fixed, **old.free}, new.free)


def read_identity(path: Path) -> Identity | None:
    """Reads the identity of the start before; None where there is none.

    Raises:
        ConfigError: The file is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Identity(_BEFORE_THE_KEY | _whole_model(content["fixed"]), dict(content["free"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(
            f"{path} is damaged, so it cannot be told whether the run directory fits; give another --run_dir, "
            "or delete the file where you are sure that model and data are the same"
        ) from None


def write_identity(path: Path, identity: Identity) -> None:
    """Writes an identity in one piece."""
    replace_text(path, json.dumps(asdict(identity), indent=1) + "\n")


def _whole_model(fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Adds what a model was that was described before some keys existed: their defaults change nothing."""
    given = {key.removeprefix("model."): value for key, value in fixed.items() if key in _MODEL_KEYS}
    model = ModelConfig(**given).model_dump(mode="json")
    return {f"model.{key}": value for key, value in model.items() if _is_fixed(f"model.{key}")} | dict(fixed)


def _is_fixed(key: str) -> bool:
    return key in _FIXED or (key.startswith("model.") and key not in _FREE_OF_MODEL)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    # A key that one side lacks came or went with a version of scaletrain, not by the user's hand.
    return [Change(key, old[key], new[key]) for key in new if key in old and old[key] != new[key]]
