"""Brings the weights of a checkpoint into one file."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

from scaletrain.convert.checkpoint_tensors import CheckpointTensors
from scaletrain.convert.copying import copy_tensors
from scaletrain.convert.output import new_file
from scaletrain.convert.pairs import Copy, whole
from scaletrain.convert.placing import lay_out_file
from scaletrain.convert.tensors import DTYPES, parse_dtype


def consolidate(
    checkpoint: Path,
    out: Path,
    dtype: str = "fp32",
    processes: int = 1,
    trusted: bool = False,
) -> None:
    """Writes the weights of a checkpoint of any ZeRO stage and number of ranks into one file, in bounded memory.

    Args:
        checkpoint: A complete checkpoint.
        out: A new safetensors file, with the names of ``Transformer.state_dict()``. A tied tensor stands in it once;
            ``tied`` in its metadata is JSON: each further name, with the one it is saved under.
        dtype: ``fp32``, ``bf16`` or ``fp16``, which the weights are rounded to.
        processes: That copy at the same time.
        trusted: Whether objects of any class may be unpickled, which runs what the checkpoint's files say.

    Raises:
        CheckpointError: The checkpoint is incomplete or damaged; nothing is written.
        ConfigError: There is such a file already.
    """
    kind = parse_dtype(dtype) or DTYPES["fp32"]
    source = CheckpointTensors(checkpoint, trusted)
    infos = {name: replace(info, dtype=kind) for name, info in source.infos.items()}
    with new_file(out) as path:
        places = lay_out_file(path, infos, {"format": "pt", "tied": json.dumps(source.tied)})
        copies = [Copy(whole(name, info.shape), whole(name, info.shape)) for name, info in infos.items()]
        copy_tensors(partial(CheckpointTensors, checkpoint, trusted), copies, places, processes)
