"""Brings the weights of a checkpoint into one file."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from scaletrain.convert.checkpoint_tensors import CheckpointTensors
from scaletrain.convert.copying import Copy, copy_tensors
from scaletrain.convert.output import new_file
from scaletrain.convert.pairs import View
from scaletrain.convert.placing import lay_out_safetensors_file

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def consolidate(
    checkpoint: Path,
    out: Path,
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32",
    processes: int = 1,
    trusted: bool = False,
) -> None:
    """Writes the weights of a checkpoint of any ZeRO stage and number of ranks into one file, in bounded memory.

    Args:
        checkpoint: A complete checkpoint.
        out: A new safetensors file, with the names of ``Transformer.state_dict()``. A tied tensor stands in it once;
            ``tied`` in its metadata is JSON: each further name, with the one it is saved under.
        dtype: What the fp32 weights are rounded to.
        processes: That copy at the same time.
        trusted: Whether objects of any class may be unpickled, which runs what the checkpoint's files say.

    Raises:
        CheckpointError: The checkpoint is incomplete or damaged; nothing is written.
        ConfigError: There is such a file already.
    """
    source = CheckpointTensors(checkpoint, trusted)
    infos = {name: replace(info, dtype=DTYPES[dtype]) for name, info in source.infos.items()}
    wholes = {name: View(name, (info.numel,), (1,)) for name, info in infos.items()}
    with new_file(out) as path:
        places = lay_out_safetensors_file(path, infos, {"format": "pt", "tied": json.dumps(source.tied)})
        copies = [Copy(whole, whole) for whole in wholes.values()]
        copy_tensors(partial(CheckpointTensors, checkpoint, trusted), copies, places, processes)
