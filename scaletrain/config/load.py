"""Loads a run's configuration: defaults < model preset < YAML < command line."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from scaletrain.config.coercion import coerce
from scaletrain.config.fields import fields, flatten, limits, sections, unknown_key
from scaletrain.config.files import Given, find_file, read_yaml
from scaletrain.config.schema import RunConfig
from scaletrain.errors import ConfigError

DEFAULT_CONFIG = Path("configs/demo.yaml")
_COMMAND_LINE = "command line"
_RANGE_ERRORS = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")


class _Dumper(yaml.SafeDumper):
    """Escapes every letter that is not printable: YAML would read a rare line break back as a common one."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        style = None if text.isprintable() else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_text)


def load_config(path: Path | None, overrides: Mapping[str, str]) -> RunConfig:
    """Builds the configuration of a run.

    A model preset stands just below the model fields given in the same place: one named in the file is
    changed by the file and by the command line, one named on the command line replaces the file's model.

    Args:
        path: YAML file, looked up as given and then in the repository; None is ``configs/demo.yaml``.
        overrides: Texts of the command line by dotted key, such as {"optim.lr": "3e-4"}.

    Returns:
        The configuration, each field within its own range; see ``derive.check`` for what fields may be together.

    Raises:
        ConfigError: Lists all that is wrong, each with its value, place, rule and remedy.
    """
    source = find_file(path or DEFAULT_CONFIG, "--config")
    layers = [read_yaml(source), {key: Given(text, _COMMAND_LINE) for key, text in overrides.items()}]
    given: dict[str, Given] = {}
    for position, layer in enumerate(layers):
        outranked = any("model.preset" in later for later in layers[position + 1 :])
        if not outranked:
            given.update(_preset_fields(layer))
        given.update(layer)
    given.setdefault("run_dir", Given(str(Path("runs") / source.stem), str(source)))
    return _build(given)


def dump_yaml(config: RunConfig) -> str:
    """Writes a configuration as YAML that ``load_config`` reads back as an equal one, floats to the last bit.

    Args:
        config: The configuration.

    Returns:
        Text of a YAML file, with every field, in the order of the schema.
    """
    tree: dict[str, Any] = {}
    for key, value in flatten(config).items():
        section, _, name = key.rpartition(".")
        place = tree.setdefault(section, {}) if section else tree
        place[name] = _plain(value)
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def raise_all(problems: Iterable[str]) -> None:
    """Raises one ConfigError that lists the problems; does nothing where there is none."""
    found = list(problems)
    if len(found) == 1:
        raise ConfigError(found[0])
    if found:
        raise ConfigError(f"{len(found)} problems in the configuration:\n" + "\n".join(f"  {line}" for line in found))


def _preset_fields(layer: Mapping[str, Given]) -> dict[str, Given]:
    named = layer.get("model.preset")
    if named is None or not isinstance(named.value, str) or named.value.lower() in ("none", "null"):
        return {}
    if {key for key in fields() if key.startswith("model.")} <= layer.keys():
        return {}  # a resolved configuration: it loads also where the preset's file is gone
    name = named.value if named.value.endswith((".yaml", ".yml")) else f"configs/model/{named.value}.yaml"
    try:
        file = find_file(Path(name), "model.preset")
    except ConfigError:
        folder = find_file(DEFAULT_CONFIG, "--config").parent / "model"
        known = ", ".join(sorted(preset.stem for preset in folder.glob("*.yaml"))) or "none"
        raise ConfigError(
            f"model.preset = {named.value!r} ({named.origin}): no such preset; "
            f"there are {known}; or give the path of a YAML file"
        ) from None
    leaves = read_yaml(file)
    if "preset" in leaves:
        raise ConfigError(f"{leaves['preset'].origin}: a preset cannot name another preset; give its fields")
    return {f"model.{key}": value for key, value in leaves.items()}


def _build(given: Mapping[str, Given]) -> RunConfig:
    problems: list[str] = []
    tree: dict[str, Any] = {}
    for key, entry in given.items():
        field = fields().get(key)
        if key in sections():
            if entry.value is not None:  # "model:" without content is an empty section
                problems.append(f"{_place(key, entry)}: a section; give its fields, such as {_example(key)}")
        elif field is None:
            problems.append(f"{_place(key, entry)}: {unknown_key(key, [*fields(), *sections()])}")
        else:
            section, _, name = key.rpartition(".")
            place = tree.setdefault(section, {}) if section else tree
            try:
                place[name] = coerce(field.annotation, entry.value)
            except ValueError as error:
                problems.append(f"{_place(key, entry)}: {error}")
    try:
        config = RunConfig.model_validate(tree)
    except ValidationError as error:
        raise_all([*problems, *_range_problems(error, given)])
        raise
    raise_all(problems)
    return config


def _range_problems(error: ValidationError, given: Mapping[str, Given]) -> Iterable[str]:
    for detail in error.errors(include_url=False):
        if detail["type"] == "default_factory_not_called":
            continue  # follows from the field that the default is made of, which is reported itself
        names = [str(part) for part in detail["loc"]]
        key = next((".".join(names[:end]) for end in (2, 1) if ".".join(names[:end]) in fields()), ".".join(names))
        field = fields().get(key)
        entry = given.get(key, Given(str(detail["input"]), "derived"))
        item = f" in item {int(names[-1]) + 1}" if names[-1].isdigit() else ""
        outside = detail["type"] in _RANGE_ERRORS and not item
        reason = f"must be {limits(field)}" if field and outside else f"{detail['msg']}{item}"
        yield f"{_place(key, entry)}: {reason}; give another value"


def _place(key: str, entry: Given) -> str:
    value = entry.value if isinstance(entry.value, str) else _flow(entry.value)
    shown = value if len(value) <= 80 else value[:77] + "..."
    return f"{key} = {shown} ({entry.origin})"


def _flow(value: object) -> str:
    return (
        "null" if value is None else "[" + ", ".join(map(str, value)) + "]" if isinstance(value, list) else str(value)
    )


def _example(section: str) -> str:
    return next(key for key in fields() if key.startswith(section + "."))


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
