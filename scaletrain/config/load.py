"""Loads a run's configuration: defaults < model preset, or model of --init < YAML < command line."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from scaletrain.config.coercion import coerce
from scaletrain.config.fields import fields, flatten, item_section, plain, sections, unknown_key
from scaletrain.config.files import Given, find_file, read_yaml
from scaletrain.config.init_model import init_model_fields
from scaletrain.config.items import parse_items, read_items
from scaletrain.config.problems import place, range_problems
from scaletrain.config.schema import RunConfig
from scaletrain.errors import ConfigError

DEFAULT_CONFIG = Path("configs/demo.yaml")
_COMMAND_LINE = "command line"


class _Dumper(yaml.SafeDumper):
    """Escapes every letter that is not printable: YAML would read a rare line break back as a common one."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        style = None if text.isprintable() else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_text)


def load_config(path: Path | None, overrides: Mapping[str, str]) -> RunConfig:
    """Builds the configuration of a run.

    A model preset stands just below the model fields given in the same place: one named in the file is
    changed by the file and by the command line, one named on the command line replaces the file's model. Without a
    preset, the model of ``init`` stands there.

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
    given = _below(layers, Path("runs") / source.stem)
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
        values, name = _section_of(tree, key)
        values[name] = plain(value)
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _section_of(tree: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    """The dictionary of a tree that a dotted key belongs into, made where it is missing, and the key's last part."""
    *names, last = key.split(".")
    for name in names:
        tree = tree.setdefault(name, {})
    return tree, last


def raise_all(problems: Iterable[str]) -> None:
    """Raises one ConfigError that lists the problems; does nothing where there is none."""
    found = list(problems)
    if len(found) == 1:
        raise ConfigError(found[0])
    if found:
        raise ConfigError(f"{len(found)} problems in the configuration:\n" + "\n".join(f"  {line}" for line in found))


def _below(layers: Sequence[Mapping[str, Given]], default_run_dir: Path) -> dict[str, Given]:
    """What stands below all that is given: the model that the run begins with."""
    merged = {key: entry for layer in layers for key, entry in layer.items()}
    named = merged.get("run_dir")
    run_dir = Path(named.value).expanduser() if named and isinstance(named.value, str) else default_run_dir
    return init_model_fields(merged, run_dir)


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
    read: dict[str, Given] = {}
    for key, entry in given.items():
        if key in sections():
            if entry.value is not None:  # "model:" without content is an empty section
                problems.append(f"{place(key, entry)}: a section; give its fields, such as {_example(key)}")
        elif key not in fields():
            problems.append(f"{place(key, entry)}: {_no_such_key(key)}")
        else:
            values, name = _section_of(tree, key)
            annotation = fields()[key].annotation
            item = item_section(annotation)
            try:
                read[key] = parse_items(entry) if item else entry
                values[name] = read_items(key, item, read[key], problems) if item else coerce(annotation, entry.value)
            except (ValueError, ConfigError) as error:
                problems.append(f"{place(key, entry)}: {error}")
    try:
        config = RunConfig.model_validate(tree)
    except ValidationError as error:
        raise_all([*problems, *range_problems(error, read)])
        raise
    raise_all(problems)
    return config


def _no_such_key(key: str) -> str:
    for list_key in fields():
        if key.startswith(f"{list_key}.") and item_section(fields()[list_key].annotation):
            return f"{list_key} is a list; begin each of its items with '- ', or put them in brackets"
    return unknown_key(key, [*fields(), *sections()])


def _example(section: str) -> str:
    return next(key for key in fields() if key.startswith(section + "."))
