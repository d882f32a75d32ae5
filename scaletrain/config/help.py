"""The text of ``--help``, made from the schema."""

from collections.abc import Mapping
from typing import Any

from pydantic.fields import FieldInfo

from scaletrain.config.coercion import describe
from scaletrain.config.fields import fields, flatten, item_section, limits, sections
from scaletrain.config.schema import RunConfig

_HEAD = """\
Pretrains a Transformer language model with DeepSpeed.

  deepspeed scaletrain/train.py [--config FILE] [--dry_run] [--KEY VALUE ...]
  deepspeed scaletrain/finetune.py --init RUN[@STEP] ...    begins with the weights of another run, or with a start

Values come from the defaults below, then the model preset or the model of --init, then the file, then the command
line. A list of items is written in YAML's way, also on the command line:
--data.sources '[{name: web, manifest: data/web}]'.

  --config FILE     YAML file with the keys below (default configs/demo.yaml)
  --dry_run         do everything but train: check, count, plan, print
  --trust_checkpoint  unpickle objects of any class in a checkpoint: whoever wrote it can run code here
  --help            this text
"""


def help_text() -> str:
    """Every key with its type, range, default and meaning, grouped by section.

    Returns:
        Text of at most 120 columns where descriptions allow it.
    """
    defaults = flatten(RunConfig())
    groups = {"The run": [key for key in fields() if "." not in key]}
    for name, section in ((name, section) for name, section in sections().items() if "." not in name):
        title = (section.__doc__ or name).strip().splitlines()[0].rstrip(".")
        groups[f"{name}: {title}"] = [key for key in fields() if key.startswith(name + ".")]
    return _HEAD + "".join(f"\n{title}\n" + _lines(keys, defaults) for title, keys in groups.items())


def _lines(keys: list[str], defaults: Mapping[str, Any]) -> str:
    lines = ""
    for key in keys:
        lines += f"  --{key:<31} {_line(fields()[key], defaults[key])}\n"
        section = item_section(fields()[key].annotation)
        for name, field in section.model_fields.items() if section else ():
            lines += f"      {name:<29} {_line(field, None if field.is_required() else field.default)}\n"
    return lines


def _line(field: FieldInfo, default: Any) -> str:
    kind = ", ".join(part for part in (describe(field.annotation), limits(field)) if part)
    shown = "required" if field.is_required() else "derived" if field.default_factory else _shown(default)
    about = f": {field.description}" if field.description else ""
    return f"{kind} [{shown}]{about}"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return (
        ", ".join(map(str, value)) or "empty"
        if isinstance(value, tuple)
        else str(value).lower()
        if value is None
        else str(value)
    )
