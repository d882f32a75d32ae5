"""A run that trained adapters becomes a start whose weights are those with what the adapters add."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from scaletrain.convert.checkpoint_tensors import CheckpointTensors
from scaletrain.convert.copying import copy_tensors
from scaletrain.convert.pairs import Copy, whole
from scaletrain.convert.start import KEPT_FOLDER, Start, keep_files, write_start
from scaletrain.convert.tensors import TensorInfo
from scaletrain.data.corpus_facts import CorpusFacts
from scaletrain.errors import ConfigError


def merge_run(checkpoint: CheckpointTensors, out: Path, dtype: torch.dtype | None = None, processes: int = 1) -> None:
    """Writes the merged weights of a checkpoint as a start.

    Args:
        checkpoint: The checkpoint, with adapters.
        out: The new folder.
        dtype: Type to write the weights in; fp32 for what was adapted, and as stored for all else, by default.
        processes: How many processes share the work.

    Raises:
        ConfigError: There are no adapters, or ``out`` cannot be written.
        CheckpointError: The weights cannot be read.
    """
    if not checkpoint.adapters:
        raise ConfigError(f"{checkpoint.folder} has no adapters: its weights are whole as they are, for --init too")
    infos = {name: TensorInfo(info.shape, dtype or info.dtype) for name, info in checkpoint.infos.items()}
    merged = {"merged": f"{checkpoint.folder.parent.parent.name}/{checkpoint.folder.name}"}
    copies = [Copy(whole(name, info.shape), whole(name, info.shape)) for name, info in infos.items()]
    open_source = functools.partial(CheckpointTensors, checkpoint.folder, checkpoint.trusted, checkpoint.kind)
    write_start(
        out,
        start_like(checkpoint, infos, merged),
        lambda places: copy_tensors(open_source, copies, places, processes),
    )


def start_like(checkpoint: CheckpointTensors, infos: Mapping[str, TensorInfo], provenance: Mapping[str, Any]) -> Start:
    """What a start holds besides numbers that come out of a run: the run's model, task and tokenizer.

    Args:
        checkpoint: Of the run.
        infos: The tensors of the start.
        provenance: Where its numbers come from.
    """
    run_dir = checkpoint.folder.parent.parent
    tokenizer = run_dir / "tokenizer.json"
    return Start(
        model=checkpoint.config,
        infos=infos,
        tokenizer=tokenizer.read_bytes() if tokenizer.is_file() else None,
        facts=CorpusFacts.read(run_dir) if (run_dir / "corpus.json").is_file() and tokenizer.is_file() else None,
        provenance=provenance,
        kept=keep_files(run_dir / KEPT_FOLDER),
        task=checkpoint.task,
    )
