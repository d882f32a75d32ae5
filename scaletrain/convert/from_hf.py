"""A Hugging Face folder becomes a start for pretraining or fine-tuning."""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scaletrain.config.schema import ModelConfig
from scaletrain.convert.checkpoint_tensors import CheckpointTensors
from scaletrain.convert.copying import copy_tensors
from scaletrain.convert.family import Family
from scaletrain.convert.heads import read_labels, task_of
from scaletrain.convert.model_tensors import infos_of
from scaletrain.convert.pairs import Copy, Pair
from scaletrain.convert.proof import Proof
from scaletrain.convert.registry import family_named
from scaletrain.convert.start import Start, keep_files, write_start
from scaletrain.convert.tensors import WEIGHT_DTYPES, TensorInfo, Tensors, dtype_name, nearest_dtype_name
from scaletrain.convert.verification import verify
from scaletrain.convert.weights_folder import open_weights
from scaletrain.data.corpus_facts import TEMPLATE_NAME, CorpusFacts
from scaletrain.data.tokenizer import Borders, find_borders, parse_tokenizer, vocabulary_rows
from scaletrain.errors import CheckpointError, ConfigError, DataError

_COMPARED_ELEMENTS = 4 << 20
# What may be tied to something else, and stand in a file all the same.
_TIED = (
    "lm_head.",
    "embed_out.",
    "cls.predictions.",
    *(f"{model}{side}.embed_tokens." for model in ("", "model.") for side in ("encoder", "decoder")),
)

_OF_GENERATION = ("decoder_start_token_id", "pad_token_id", "eos_token_id", "bos_token_id")


@dataclass(frozen=True)
class HuggingFaceModel:
    """A Hugging Face folder, looked into.

    Attributes:
        folder: The folder.
        config: Content of its ``config.json``.
        family: What its model is one of.
        model: The description in ours.
        names: Names of its tensors in the folder, by their names in the family's table.
        infos: Its tensors, by the table's names.
        pairs: Which of our numbers are which of theirs.
    """

    folder: Path
    config: Mapping[str, Any]
    family: Family
    model: ModelConfig
    names: Mapping[str, str]
    infos: Mapping[str, TensorInfo]
    pairs: tuple[Pair, ...]


class NamedTensors:
    """The tensors of a Hugging Face folder, by other names than there."""

    def __init__(self, folder: Path, names: Mapping[str, str]) -> None:
        """Opens the folder.

        Args:
            folder: A folder with weights.
            names: Names in the folder, by the names to use.
        """
        self._tensors = open_weights(folder)
        self._names = names

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """What there is, by the names to use."""
        there = self._tensors.infos
        return {name: there[theirs] for name, theirs in self._names.items()}

    def read(self, name: str, start: int, numel: int) -> Tensor:
        """Reads a range of a flattened tensor; see ``Tensors``."""
        return self._tensors.read(self._names[name], start, numel)

    def release(self) -> None:
        """Gives memory back that reading has mapped."""
        self._tensors.release()


def look_into(folder: Path) -> HuggingFaceModel:
    """Reads the description of a folder, and compares its tensors with what the description asks for.

    Args:
        folder: A Hugging Face folder.

    Returns:
        What was found.

    Raises:
        ConfigError: Its model is none that can be converted; features are named.
        CheckpointError: Tensors are missing, of another shape, or of no use; all are named.
    """
    config = _read_config(folder)
    family = family_named(str(config.get("model_type")))
    model = family.model_of(config)
    tensors = open_weights(folder)
    if model.n_layers > len(tensors.infos):  # told before a model of that many layers is described
        raise CheckpointError(
            f"config.json asks for {model.n_layers} layers, but the weights in {folder} are {len(tensors.infos)} "
            "tensors; get a complete copy"
        )
    names = _names_of(family, tensors)
    infos = tensors.infos
    there = {name: infos[theirs] for name, theirs in names.items()}
    pairs, expected = family.pairs(infos_of(model), model)
    extra = {
        name: info
        for name, info in there.items()
        if name not in expected and not any(_is_copy(name, other, there, tensors, names) for other in expected)
    }
    _compare(folder, expected, there, extra)
    tensors.release()
    used = {name: theirs for name, theirs in names.items() if name in expected}
    return HuggingFaceModel(folder, config, family, model, used, {name: there[name] for name in used}, tuple(pairs))


def from_hf(
    source: Path, out: Path, dtype: torch.dtype | None = None, processes: int = 1, proves: bool = False
) -> tuple[HuggingFaceModel, Proof | None]:
    """Converts a Hugging Face folder to a start.

    Args:
        source: The folder.
        out: A new folder; it appears complete or not at all.
        dtype: Type to store the weights in; as in the source by default.
        processes: How many processes share the work.
        proves: Whether the result must compute what the source computes.

    Returns:
        What was found in the source, and the proof that was asked for.

    Raises:
        ConfigError: The model cannot be represented here, or ``out`` cannot be written.
        CheckpointError: The weights are incomplete or damaged, or the result is not the same model.
    """
    found = look_into(source)
    ours = infos_of(found.model)
    types = {pair.ours.name: dtype or found.infos[pair.theirs.name].dtype for pair in found.pairs}
    infos = {name: TensorInfo(info.shape, types[name]) for name, info in ours.items()}
    tokenizer, borders = read_tokenizer(source, found.config, found.model)
    kept = _kept(source, found)
    provenance = {
        "converted_from": source.resolve().name,
        "model_type": found.family.model_type,
        "architecture": (found.config.get("architectures") or found.family.architectures)[0],
    }
    facts = None if tokenizer is None or borders is None else _facts(source, found, tokenizer, borders, kept)
    task = task_of(found.model, found.config)
    start = Start(found.model, infos, tokenizer, facts, provenance, kept, task)
    copies = [Copy(pair.theirs, pair.ours) for pair in found.pairs]
    open_source = functools.partial(NamedTensors, source, dict(found.names))
    proofs: list[Proof] = []

    def prove(checkpoint: Path) -> None:
        if proves:
            written = CheckpointTensors(checkpoint)
            proofs.append(verify(written, found.model, source, dtype=nearest_dtype_name(written.infos)))

    write_start(out, start, lambda places: copy_tensors(open_source, copies, places, processes), prove)
    return found, proofs[0] if proofs else None


def _kept(source: Path, found: HuggingFaceModel) -> dict[str, bytes]:
    """Files for the way back, among them how a decoder begins, which old folders tell in ``config.json`` alone."""
    kept = keep_files(source)
    given = {key: found.config[key] for key in _OF_GENERATION if found.config.get(key) is not None}
    if found.model.n_encoder_layers and "generation_config.json" not in kept:
        kept["generation_config.json"] = (json.dumps(given, indent=2) + "\n").encode()
    return kept


def _facts(
    source: Path, found: HuggingFaceModel, tokenizer: bytes, borders: Borders, kept: Mapping[str, bytes]
) -> CorpusFacts:
    """What a run would keep of a corpus that the model was trained on."""
    rows = vocabulary_rows(parse_tokenizer(tokenizer, str(source)))
    template = kept.get(TEMPLATE_NAME)
    facts = CorpusFacts(str(source), borders, rows, chat_template=None if template is None else template.decode())
    tells_classes = bool(found.model.n_classes) and not found.model.output_transform
    return read_labels(facts, found.model, found.config) if tells_classes else facts


def read_tokenizer(folder: Path, config: Mapping[str, Any], model: ModelConfig) -> tuple[bytes | None, Borders | None]:
    """Reads the tokenizer of a folder, and which of its tokens mark documents.

    Args:
        folder: A Hugging Face folder.
        config: Content of its ``config.json``.
        model: The description in ours.

    Returns:
        Content of its ``tokenizer.json``, and the tokens; None where there are none.

    Raises:
        ConfigError: The tokenizer has tokens that the embedding has no rows for.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None, None
    content = path.read_bytes()
    tokenizer = parse_tokenizer(content, str(path))
    rows = vocabulary_rows(tokenizer)
    if rows > model.vocab_size:
        raise ConfigError(
            f"{path} has tokens up to {rows - 1}, but the embedding has {model.vocab_size} rows; "
            "they do not belong together, or the vocabulary was enlarged without the weights"
        )
    eos = config.get("eos_token_id")
    eos_id = eos[0] if isinstance(eos, list) and eos else eos
    # -1 and other numbers of no token stand for none in some files.
    name = tokenizer.id_to_token(eos_id) if isinstance(eos_id, int) and 0 <= eos_id < rows else None
    try:
        found = find_borders(tokenizer, name)
    except DataError:
        return content, None
    return content, found


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        raise ConfigError(f"{folder} holds no config.json; give the folder of a Hugging Face model") from None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read: {error}; copy it anew") from None


def _names_of(family: Family, tensors: Tensors) -> dict[str, str]:
    """Names in the folder, by those in the table."""
    names: dict[str, str] = {}
    # Saved without its head, a model lacks the prefix of its body.
    has_prefix = any(name.startswith(family.prefix) for name in tensors.infos)
    for theirs in tensors.infos:
        name = family.current_name(theirs)
        if name is None:
            continue
        if not has_prefix:
            name = family.prefix + name
        # Two names of one tensor, an older and a newer one: the second is compared as a copy.
        names[theirs if name in names else name] = theirs
    return names


def _is_copy(
    name: str, other: str, there: Mapping[str, TensorInfo], tensors: Tensors, names: Mapping[str, str]
) -> bool:
    """Whether a tensor that the model lacks is bit for bit one that it has, as tied ones are in older files."""
    info = there[name]
    if not name.startswith(_TIED) or there.get(other) != info:
        return False
    return all(
        torch.equal(_bits(tensors, names[name], start, info), _bits(tensors, names[other], start, info))
        for start in range(0, info.numel, _COMPARED_ELEMENTS)
    )


def _bits(tensors: Tensors, name: str, start: int, info: TensorInfo) -> Tensor:
    return tensors.read(name, start, min(_COMPARED_ELEMENTS, info.numel - start)).view(torch.uint8)


def _compare(
    folder: Path, expected: Mapping[str, TensorInfo], there: Mapping[str, TensorInfo], extra: Mapping[str, TensorInfo]
) -> None:
    problems = [f"{name} is missing" for name in expected if name not in there]
    problems += [
        f"{name} has the shape {list(there[name].shape)} instead of {list(info.shape)}"
        for name, info in expected.items()
        if name in there and there[name].shape != info.shape
    ]
    problems += [
        f"{name} is stored as {dtype_name(there[name].dtype)}; quantized weights are not converted"
        for name in expected
        if name in there and there[name].dtype not in WEIGHT_DTYPES
    ]
    problems += [f"{name} {list(info.shape)} has no place in the model" for name, info in extra.items()]
    if problems:
        told = "".join(f"\n  {problem}" for problem in problems)
        raise CheckpointError(
            f"the weights in {folder} are not those that its config.json describes:{told}\nGet a complete copy, or "
            "mend config.json (vocab_size is the number of rows of the embedding)."
        )
