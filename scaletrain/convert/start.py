"""A start: a run directory with one checkpoint of weights alone, from which runs begin (``--init``)."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scaletrain.checkpoint.commit import commit
from scaletrain.checkpoint.fragments import describe_fragments
from scaletrain.checkpoint.layout import CONFIG, STATE, folder_name, partial_name
from scaletrain.checkpoint.records import checksum
from scaletrain.config.load import dump_yaml
from scaletrain.config.schema import DataConfig, ModelConfig, RunConfig, TaskConfig, TrainConfig
from scaletrain.config.task_rules import reads_one_document
from scaletrain.convert.model_tensors import tied_names
from scaletrain.convert.output import new_folder
from scaletrain.convert.placing import Place, lay_out_safetensors
from scaletrain.convert.tensors import TensorInfo
from scaletrain.data.corpus_facts import CorpusFacts
from scaletrain.protocols import Fragment, TrainingState

# Files of a Hugging Face folder that belong to its tokenizer; a start keeps them, for the way back.
KEPT_FOLDER = "hugging_face"
KEPT = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
    "vocab.txt",
)

_PREFIX = "model."  # of the task that a model is trained in
_SHARD_BYTES = 5 * 10**9


@dataclass(frozen=True)
class Start:
    """What a start holds besides the numbers.

    Attributes:
        model: The description.
        infos: Our tensors, a tied one once, with the types they are stored in.
        tokenizer: Content of its ``tokenizer.json``; None for none.
        facts: What is told of its corpora; None where there is no tokenizer, or it marks no documents.
        provenance: Where the weights come from, as plain values.
        kept: Further files by name; see ``KEPT``.
        task: What the model is for.
    """

    model: ModelConfig
    infos: Mapping[str, TensorInfo]
    tokenizer: bytes | None
    facts: CorpusFacts | None
    provenance: Mapping[str, Any]
    kept: Mapping[str, bytes] = field(default_factory=dict)
    task: TaskConfig = field(default_factory=TaskConfig)


def write_start(
    out: Path,
    start: Start,
    fill: Callable[[Mapping[str, Place]], None],
    check: Callable[[Path], None] | None = None,
) -> None:
    """Writes a start.

    Args:
        out: A new folder; it appears complete or not at all.
        start: What it holds.
        fill: Fills the tensors of the given places, by our names.
        check: Is given the checkpoint before it appears; what it raises keeps it from appearing.

    Raises:
        ConfigError: ``out`` exists, or cannot be written.
    """
    with new_folder(out) as draft:
        train = TrainConfig(max_seq_len=start.model.max_seq_len)
        data = DataConfig(packing="document") if reads_one_document(start.task) else DataConfig()
        run = RunConfig(run_dir=Path("runs") / out.name, model=start.model, train=train, data=data, task=start.task)
        config = dump_yaml(run)
        (draft / CONFIG).write_text(config)
        (draft / "provenance.json").write_text(json.dumps(start.provenance, indent=1) + "\n")
        if start.tokenizer is not None:
            _write_tokenizer(draft, start)
        for name, content in start.kept.items():
            (draft / KEPT_FOLDER).mkdir(exist_ok=True)
            (draft / KEPT_FOLDER / name).write_bytes(content)
        _write_checkpoint(draft / "checkpoints", start, config, fill)
        if check is not None:
            check(draft / "checkpoints" / folder_name(0))


def _write_tokenizer(draft: Path, start: Start) -> None:
    assert start.tokenizer is not None  # the caller has looked
    (draft / "tokenizer.json").write_bytes(start.tokenizer)
    identity = {"fixed": {"tokenizer": hashlib.sha256(start.tokenizer).hexdigest()}, "free": {}}
    (draft / "identity.json").write_text(json.dumps(identity, indent=1) + "\n")
    if start.facts is not None:
        start.facts.keep(draft)


def _write_checkpoint(
    checkpoints: Path, start: Start, config: str, fill: Callable[[Mapping[str, Place]], None]
) -> None:
    checkpoints.mkdir()
    partial = checkpoints / partial_name(0)
    partial.mkdir()
    # Under the names that they have in the task, as in all checkpoints.
    stored = {_PREFIX + name: info for name, info in start.infos.items()}
    places = lay_out_safetensors(partial, stored, _SHARD_BYTES, {"format": "pt"})
    fill({name.removeprefix(_PREFIX): place for name, place in places.items()})
    for number, file in enumerate(sorted({place.path for place in places.values()})):
        held = [name for name, place in places.items() if place.path == file]
        name, content = describe_fragments(number, file.name, [_fragment(name, stored[name]) for name in held])
        (partial / name).write_text(content)
    (partial / CONFIG).write_text(config)
    (partial / STATE).write_text(json.dumps(_state(start, stored), indent=1))
    records = {path.name: checksum(path) for path in partial.iterdir()}
    commit(partial, checkpoints / folder_name(0), records)


def _fragment(name: str, info: TensorInfo) -> Fragment:
    return Fragment(name, 0, info.numel, 0, 0)


def _state(start: Start, stored: Mapping[str, TensorInfo]) -> dict[str, Any]:
    tied = {_PREFIX + name: _PREFIX + stored for name, stored in tied_names(start.model).items()}
    engine = {
        "zero_stage": 0,
        "world_size": 1,
        "applied_steps": 0,
        "global_steps": 0,
        "moments": [],
        "loss_scale": {},
        "shapes": {name: list(info.shape) for name, info in stored.items()},
        "tied": tied,
    }
    return {"training": TrainingState().to_json(), "engine": engine, "callbacks": {}}


def keep_files(folder: Path) -> dict[str, bytes]:
    """Reads the files of a tokenizer that lie beside its ``tokenizer.json``, as far as there are any."""
    return {name: (folder / name).read_bytes() for name in KEPT if (folder / name).is_file()}
