"""A checkpoint becomes a Hugging Face folder."""

import functools
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from scaletrain.convert.checkpoint_tensors import CheckpointTensors
from scaletrain.convert.copying import copy_tensors
from scaletrain.convert.family import Family
from scaletrain.convert.heads import CLASSIFIER, check_architecture, describe_labels
from scaletrain.convert.model_card import describe_provenance, write_card
from scaletrain.convert.model_tensors import infos_of, require_tensors
from scaletrain.convert.output import new_folder
from scaletrain.convert.pairs import Copy
from scaletrain.convert.placing import lay_out_safetensors
from scaletrain.convert.proof import Proof
from scaletrain.convert.registry import family_for
from scaletrain.convert.start import KEPT_FOLDER, keep_files
from scaletrain.convert.tensors import TensorInfo, nearest_dtype_name
from scaletrain.convert.verification import verify
from scaletrain.data.corpus_facts import TEMPLATE_NAME, CorpusFacts
from scaletrain.data.tokenizer import find_borders, load_tokenizer, vocabulary_rows
from scaletrain.errors import ConfigError, DataError

DEFAULT_SHARD_BYTES = 5 * 10**9

_OF_DECODER = ("decoder_start_token_id", "pad_token_id")


def to_hf(
    checkpoint: CheckpointTensors,
    out: Path,
    dtype: torch.dtype | None = None,
    model_type: str | None = None,
    processes: int = 1,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    proves: bool = False,
) -> tuple[Family, Proof | None]:
    """Converts a checkpoint to a Hugging Face folder.

    Args:
        checkpoint: The checkpoint, of any ZeRO stage and number of ranks.
        out: A new folder; it appears complete or not at all.
        dtype: Type to write the weights in; as they are stored by default, which is fp32 for those of a training.
        model_type: The family to write; the first that fits by default.
        processes: How many processes share the work.
        shard_bytes: Most bytes of a file of weights.
        proves: Whether the result must compute what the checkpoint computes.

    Returns:
        The family, and the proof that was asked for.

    Raises:
        ConfigError: No family has all features of the model, or ``out`` cannot be written.
        CheckpointError: The weights are not those of the model, cannot be read, or the result is not the same model.
    """
    require_tensors(checkpoint)
    family, model = family_for(checkpoint.config, model_type)
    # Of a bias that the checkpoint does not have nothing is copied: what is not written in a file is zero.
    dtypes = {info.dtype for info in checkpoint.infos.values()}
    needed = infos_of(model, max(dtypes, key=lambda each: each.itemsize))
    pairs, theirs = family.pairs({name: checkpoint.infos.get(name, info) for name, info in needed.items()}, model)
    described = {"architectures": list(family.architectures[:1]), **family.write(model)}
    check_architecture(described["architectures"][0], checkpoint.task)
    # Without a head, the names of the body stand alone.
    prefix = family.prefix if described["architectures"][0] in family.bare else ""
    infos = {name.removeprefix(prefix): TensorInfo(info.shape, dtype or info.dtype) for name, info in theirs.items()}
    with new_folder(out) as draft:
        _write_descriptions(draft, checkpoint, family, infos, described)
        places = lay_out_safetensors(draft, infos, shard_bytes, {"format": "pt"})
        copies = [
            Copy(pair.ours, replace(pair.theirs, name=pair.theirs.name.removeprefix(prefix)))
            for pair in pairs
            if pair.ours.name in checkpoint.infos
        ]
        copy_tensors(
            functools.partial(CheckpointTensors, checkpoint.folder, checkpoint.trusted, checkpoint.kind),
            copies,
            places,
            processes,
        )
        proof = verify(checkpoint, checkpoint.config, draft, dtype=nearest_dtype_name(infos)) if proves else None
    return family, proof


def _write_descriptions(
    draft: Path,
    checkpoint: CheckpointTensors,
    family: Family,
    infos: Mapping[str, TensorInfo],
    described: Mapping[str, Any],
) -> None:
    run_dir = checkpoint.folder.parent.parent
    facts = _facts_of(run_dir)
    kept = keep_files(run_dir / KEPT_FOLDER)
    ids = _special_ids(facts, checkpoint, kept)
    dtype = max(infos.values(), key=lambda info: info.numel).dtype
    stored = {"torch_dtype": str(dtype).removeprefix("torch."), "use_cache": True}
    tells_classes = described["architectures"][0].endswith(CLASSIFIER)
    labels = describe_labels(checkpoint.config, checkpoint.task, facts) if tells_classes else {}
    config = {"model_type": family.model_type, **described, **labels, **ids, **stored}
    _write_json(draft / "config.json", config)
    if checkpoint.config.causal:
        _write_json(draft / "generation_config.json", {**ids, "do_sample": False})
    _write_tokenizer(draft, run_dir, facts, checkpoint, kept)
    parameters = sum(info.numel for info in infos.values())
    write_card(draft, describe_provenance(checkpoint), family, described["architectures"][0], parameters)


def _facts_of(run_dir: Path) -> CorpusFacts | None:
    """What a run keeps of its corpus; of one that keeps a tokenizer alone, what that tells."""
    path = run_dir / "tokenizer.json"
    if not path.is_file():
        return None
    if (run_dir / "corpus.json").is_file():
        return CorpusFacts.read(run_dir)
    tokenizer = load_tokenizer(path)
    try:
        return CorpusFacts(str(path), find_borders(tokenizer), vocabulary_rows(tokenizer))
    except DataError:
        return None


def _special_ids(
    facts: CorpusFacts | None, checkpoint: CheckpointTensors, kept: Mapping[str, bytes]
) -> dict[str, int | None]:
    """Tokens that mean something to whoever generates."""
    if facts is None:  # the defaults of a class may be tokens that a small model does not have
        return {"pad_token_id": None, "eos_token_id": None} if checkpoint.config.n_encoder_layers else {}
    ids = {"bos_token_id": facts.borders.bos_id, "eos_token_id": facts.borders.eos_id}
    if checkpoint.config.n_encoder_layers:
        # As task seq2seq begins targets; a model that was imported begins them as it did there.
        ids |= dict.fromkeys(_OF_DECODER, facts.borders.eos_id)
        given = json.loads(kept.get("generation_config.json", b"{}"))
        ids |= {key: given[key] for key in _OF_DECODER if key in given}
    return ids


def _write_tokenizer(
    draft: Path, run_dir: Path, facts: CorpusFacts | None, checkpoint: CheckpointTensors, kept: Mapping[str, bytes]
) -> None:
    path = run_dir / "tokenizer.json"
    if not path.is_file():
        return
    tokenizer = load_tokenizer(path)
    if vocabulary_rows(tokenizer) > checkpoint.config.vocab_size:
        raise ConfigError(
            f"{path} has {vocabulary_rows(tokenizer)} tokens, but the embedding has {checkpoint.config.vocab_size} "
            "rows; they do not belong together"
        )
    (draft / "tokenizer.json").write_bytes(path.read_bytes())
    if "tokenizer_config.json" not in kept:
        ids = {} if facts is None else {"bos_token": facts.borders.bos_id, "eos_token": facts.borders.eos_id}
        names = {key: tokenizer.id_to_token(token) for key, token in ids.items() if token is not None}
        described = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **names,
            "model_max_length": checkpoint.config.max_seq_len,
            "clean_up_tokenization_spaces": False,
        }
        _write_json(draft / "tokenizer_config.json", described)
    if (run_dir / TEMPLATE_NAME).is_file():
        kept = {**kept, TEMPLATE_NAME: (run_dir / TEMPLATE_NAME).read_bytes()}
    for name, content in kept.items():
        (draft / name).write_bytes(content)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
