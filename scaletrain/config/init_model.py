"""The model that ``--init`` names: its fields stand below those given, so that nobody has to describe it again."""

from collections.abc import Mapping
from pathlib import Path

from scaletrain.config.fields import fields
from scaletrain.config.files import Given, read_yaml
from scaletrain.errors import ConfigError
from scaletrain.protocols import Step

# Of a run directory, of a checkpoint and of a start alike.
_CONFIG = "config.yaml"


def split_init(init: str) -> tuple[Path, Step | None]:
    """Splits ``RUN[@STEP]``, where the step may be ``best``; the name of a folder may hold an @ as well.

    Args:
        init: As the user gave it.

    Returns:
        The place, which need not exist, and the step.

    Raises:
        ConfigError: What stands behind the @ is neither a number nor best.
    """
    name, at, step = init.rpartition("@")
    if not at or Path(init).expanduser().is_dir():
        return Path(init).expanduser(), None
    if step == "best":
        return Path(name).expanduser(), "best"
    if not step.isdecimal():
        raise ConfigError(
            f"init: {init}: {step or 'nothing'} is no step; give RUN or RUN@STEP, with a whole number or best"
        )
    return Path(name).expanduser(), int(step)


def init_model_fields(given: Mapping[str, Given], run_dir: Path) -> dict[str, Given]:
    """The fields of the model that a run begins with.

    Args:
        given: What the file and the command line say.
        run_dir: The run's folder, which knows the model where the source is gone.

    Returns:
        ``model.*`` as the source describes it; nothing without ``init``, beside a preset, where the whole model is
        given, or where the source has no description: then there is nothing to begin with, as is told later.
    """
    init = given.get("init")
    keys = {key for key in fields() if key.startswith("model.")}
    if init is None or not isinstance(init.value, str) or init.value.lower() in ("none", "null"):
        return {}
    preset = given.get("model.preset")
    has_preset = preset is not None and str(preset.value).lower() not in ("none", "null")
    if has_preset or keys <= given.keys():
        return {}
    place, _ = split_init(init.value)
    for file in (place / _CONFIG, place.parent / _CONFIG, run_dir / _CONFIG):
        if file.parent == place.parent and place.name != "checkpoints":
            continue
        if file.is_file():
            there = read_yaml(file)
            return {key: there[key] for key in keys & there.keys() if key != "model.preset"}
    return {}
