"""Finds the files a configuration names, and reads YAML and JSON without guessing what they mean."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from scaletrain.errors import ConfigError

# A text as it stands in the file, nothing at all, or lists of these; the field's type says later what it means.
RawValue = str | None | list["RawValue"]

_NULL_TAG = "tag:yaml.org,2002:null"


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
    tried = ", ".join(str(candidate.absolute()) for candidate in candidates)
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
        For each leaf its dotted key, text and place. An empty mapping has no leaf.

    Raises:
        ConfigError: Syntax error, something else than a mapping, or a key given twice; with the line.
    """
    try:
        root = yaml.compose(read_text(path), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        problem = error.problem or error.context or "syntax error"
        raise ConfigError(f"{path}{line} is not valid YAML: {problem}; correct the line") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{path} must hold a mapping such as 'train: {{max_steps: 1000}}', not a {_kind(root)}")
    leaves: dict[str, Given] = {}
    _collect(root, "", path, leaves, [])
    return leaves


def _collect(
    mapping: yaml.MappingNode, prefix: str, path: Path, leaves: dict[str, Given], parents: list[yaml.Node]
) -> None:
    if mapping in parents:
        raise ConfigError(f"{path}, line {mapping.start_mark.line + 1}: a mapping contains itself; remove the alias")
    for key_node, value_node in mapping.value:
        place = f"{path}, line {key_node.start_mark.line + 1}"
        if not isinstance(key_node, yaml.ScalarNode):
            raise ConfigError(f"{place}: a key must be a name, not a {_kind(key_node)}")
        key = prefix + key_node.value
        if isinstance(value_node, yaml.MappingNode) and value_node.value:
            _collect(value_node, key + ".", path, leaves, [*parents, mapping])
            continue
        if key in leaves:
            raise ConfigError(f"{place}: {key} is given twice (first in {leaves[key].origin}); keep one of them")
        leaves[key] = Given(_raw(value_node, place), place)


def _raw(node: yaml.Node, place: str) -> RawValue:
    if isinstance(node, yaml.ScalarNode):
        return None if node.tag == _NULL_TAG else str(node.value)
    if isinstance(node, yaml.SequenceNode):
        if any(not isinstance(item, yaml.ScalarNode) for item in node.value):
            raise ConfigError(f"{place}: a list may hold plain values only, no lists or mappings")
        return [_raw(item, place) for item in node.value]
    return None  # an empty mapping: a section without content


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
