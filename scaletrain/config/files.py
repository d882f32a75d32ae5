"""Finds the files a configuration names, and reads YAML and JSON without guessing what they mean."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from scaletrain.errors import ConfigError

# A text as it stands in the file, nothing at all, lists of these, or a list's mappings of keys to values with their
# places; the field's type says later what it means.
RawValue = str | None | list["RawValue"] | dict[str, "Given"]

_NULL_TAG = "tag:yaml.org,2002:null"
_PlaceOf = Callable[[yaml.Node], str]


@dataclass(frozen=True)
class Given:
    """A value as somebody wrote it.

    Attributes:
        value: The text, not yet of the field's type.
        origin: Where it was written, for messages.
    """

    value: RawValue
    origin: str


def configs_dir() -> Path:
    """Folder ``configs`` of the repository that this package stands in."""
    return Path(__file__).resolve().parents[2] / "configs"


def find_file(path: Path, purpose: str) -> Path:
    """Looks a file up as it was given, then under the repository and its ``configs``.

    Args:
        path: The file as the user named it.
        purpose: What the file is, with the flag that names it, for the message.

    Returns:
        A path that is a file.

    Raises:
        ConfigError: No such file.
    """
    candidates = [path] if path.is_absolute() else [path, configs_dir().parent / path, configs_dir() / path]
    for candidate in candidates:
        try:
            if candidate.is_file():
                return candidate
        except OSError as error:  # a name too long, a folder that may not be entered
            raise ConfigError(f"{purpose} {str(path)!r} cannot be opened: {error.strerror}") from None
    if any(candidate.is_dir() for candidate in candidates):
        raise ConfigError(f"{purpose} {str(path)!r} is a folder; give the path of a file in it")
    tried = ", ".join(str(candidate.absolute()) for candidate in dict.fromkeys(candidates))
    raise ConfigError(f"{purpose} {str(path)!r} does not exist; give the path of a file (looked for {tried})")


def read_text(path: Path) -> str:
    """Reads a UTF-8 file.

    Raises:
        ConfigError: The file cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None


def read_yaml(path: Path) -> dict[str, Given]:
    """Reads a YAML mapping into dotted keys, every scalar as the text it is.

    PyYAML's own reading is not used: it takes ``3e-4`` for a string, ``2024_01`` for a number, and the last
    of two equal keys.

    Args:
        path: A file with a mapping at its top; an empty file is an empty mapping.

    Returns:
        For each leaf its dotted key, value and place. Mappings in a list belong to the list's leaf.

    Raises:
        ConfigError: Syntax error, something else than a mapping, or a key given twice; with the line.
    """
    try:
        root = yaml.compose(read_text(path), Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line} is not valid YAML: {_syntax_problem(error)}; correct the line") from None
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{path} must hold a mapping such as 'train: {{max_steps: 1000}}', not a {_kind(root)}")
    leaves: dict[str, Given] = {}
    _collect(root, "", lambda node: f"{path}, line {node.start_mark.line + 1}", leaves, [])
    return leaves


def parse_value(text: str, origin: str) -> RawValue:
    """Reads a value as it would stand behind a key of a YAML file, every scalar in it as the text it is.

    Args:
        text: YAML, such as ``[{name: web, manifest: data/web}]``.
        origin: Where it was written, for messages.

    Returns:
        The value, whose mappings name ``origin`` as the place of each key.

    Raises:
        ConfigError: Syntax error, or a key given twice.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"not valid YAML: {_syntax_problem(error)}") from None
    return None if node is None else _raw(node, lambda _: origin, [])


def _syntax_problem(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError):
        return error.problem or error.context or "syntax error"
    return str(error)


def _collect(
    mapping: yaml.MappingNode, prefix: str, place_of: _PlaceOf, leaves: dict[str, Given], parents: Sequence[yaml.Node]
) -> None:
    _refuse_cycle(mapping, place_of, parents)
    within = [*parents, mapping]
    for key_node, value_node in mapping.value:
        place = place_of(key_node)
        key = prefix + _key(key_node, place)
        if isinstance(value_node, yaml.MappingNode) and value_node.value:
            _collect(value_node, key + ".", place_of, leaves, within)
            continue
        is_empty_section = isinstance(value_node, yaml.MappingNode)
        _add(leaves, key, Given(None if is_empty_section else _raw(value_node, place_of, within), place))


def _raw(node: yaml.Node, place_of: _PlaceOf, parents: Sequence[yaml.Node]) -> RawValue:
    if isinstance(node, yaml.ScalarNode):
        return None if node.tag == _NULL_TAG else str(node.value)
    _refuse_cycle(node, place_of, parents)
    within = [*parents, node]
    if isinstance(node, yaml.SequenceNode):
        return [_raw(item, place_of, within) for item in node.value]
    entries: dict[str, Given] = {}
    for key_node, value_node in node.value:
        place = place_of(key_node)
        _add(entries, _key(key_node, place), Given(_raw(value_node, place_of, within), place))
    return entries


def _refuse_cycle(node: yaml.Node, place_of: _PlaceOf, parents: Sequence[yaml.Node]) -> None:
    if node in parents:
        raise ConfigError(f"{place_of(node)}: a {_kind(node)} contains itself; remove the alias")


def _key(node: yaml.Node, place: str) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise ConfigError(f"{place}: a key must be a name, not a {_kind(node)}")
    return str(node.value)


def _add(entries: dict[str, Given], key: str, entry: Given) -> None:
    if key in entries:
        first = entries[key].origin
        where = f" (first in {first})" if first != entry.origin else ""
        raise ConfigError(f"{entry.origin}: {key} is given twice{where}; keep one of them")
    entries[key] = entry


def _kind(node: yaml.Node) -> str:
    return (
        "list" if isinstance(node, yaml.SequenceNode) else "mapping" if isinstance(node, yaml.MappingNode) else "text"
    )


def read_json_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object, refusing keys that stand twice.

    Args:
        path: A file with an object at its top.

    Returns:
        The object.

    Raises:
        ConfigError: Syntax error (with the line), something else than an object, or a key given twice.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise ConfigError(f"{path}: {', '.join(twice)} given twice in one object; keep one of them")
        return dict(pairs)

    try:
        content = json.loads(read_text(path), object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}, line {error.lineno} is not valid JSON: {error.msg}; correct the line") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold a JSON object, not a {type(content).__name__}")
    return content
