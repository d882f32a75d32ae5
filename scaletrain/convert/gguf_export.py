"""A checkpoint as one GGUF file, which llama.cpp and what is built on it can run.

The package ``gguf`` knows the format: names, header, key-value pairs. The numbers are copied slice by slice to where
the header says that they lie, so that memory does not grow with the model.
"""

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from scaletrain.config.schema import ModelConfig
from scaletrain.convert.checkpoint_tensors import CheckpointTensors
from scaletrain.convert.copying import copy_tensors
from scaletrain.convert.gguf_architecture import architecture_of, describe_model
from scaletrain.convert.gguf_tensors import ROPE_FACTORS, Layout, lay_out_tensors, rope_factors
from scaletrain.convert.gguf_tokenizer import Vocabulary, read_vocabulary
from scaletrain.convert.model_tensors import require_tensors
from scaletrain.convert.output import new_file
from scaletrain.convert.placing import Place
from scaletrain.convert.tensors import DTYPES
from scaletrain.data.tokenizer import find_borders, load_tokenizer, read_borders
from scaletrain.errors import ConfigError, DataError

if TYPE_CHECKING:
    from gguf import GGUFWriter

# Our names of types, and what GGUF calls a file whose matrices are so, and a tensor.
_FILE_TYPES = {"fp32": "ALL_F32", "fp16": "MOSTLY_F16", "bf16": "MOSTLY_BF16"}
_TENSOR_TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def to_gguf(
    checkpoint: Path,
    out: Path,
    dtype: str = "fp16",
    processes: int = 1,
    tokenizer: Path | None = None,
    trusted: bool = False,
) -> None:
    """Writes a checkpoint as a GGUF file.

    Args:
        checkpoint: Folder of one checkpoint, of any ZeRO stage and number of ranks.
        out: The new file. It appears complete or not at all.
        dtype: Type of the matrices, ``fp32``, ``fp16`` or ``bf16``; all else is fp32.
        processes: Processes that copy at the same time.
        tokenizer: The ``tokenizer.json`` that the model was trained with; that of the checkpoint's run by default.
        trusted: Whether objects of any class may be unpickled, which runs what the files say.

    Raises:
        ConfigError: The package ``gguf`` is missing; GGUF cannot say what the model or its tokenizer does; or ``out``
            exists.
        CheckpointError: The checkpoint is damaged.
        DataError: The tokenizer is missing, cannot be read, or has no token to end a document with.
    """
    _check_installed()
    if dtype not in _FILE_TYPES:
        raise ConfigError(
            f"--dtype {dtype} is no type that GGUF's matrices are written in; give one of {', '.join(_FILE_TYPES)}"
        )
    source = CheckpointTensors(checkpoint, trusted)
    config = source.config
    architecture = architecture_of(config)
    require_tensors(source)
    vocabulary = _find_vocabulary(checkpoint, tokenizer, config.vocab_size)
    layout = lay_out_tensors(architecture, config, source.infos, DTYPES[dtype])
    with new_file(out) as path:
        places = _write_header(path, out.stem, architecture, config, vocabulary, layout, dtype)
        if ROPE_FACTORS in places:
            with path.open("r+b") as file:
                file.seek(places[ROPE_FACTORS].offset)
                file.write(rope_factors(config).numpy().astype("<f4").tobytes())
        copy_tensors(functools.partial(CheckpointTensors, checkpoint, trusted), layout.copies, places, processes)


def _check_installed() -> None:
    try:
        import gguf  # noqa: F401  # whether it is there is the question
    except ImportError:
        raise ConfigError(
            "The package gguf is not installed, which knows the format. Install it: pip install scaletrain[gguf]"
        ) from None


def _find_vocabulary(checkpoint: Path, tokenizer: Path | None, vocab_size: int) -> Vocabulary:
    run_dir = checkpoint.resolve().parent.parent
    path = tokenizer or run_dir / "tokenizer.json"
    if not path.exists():
        raise DataError(f"There is no tokenizer {path}. Give the one that the model was trained with by --tokenizer.")
    loaded = load_tokenizer(path)
    corpus = run_dir / "corpus.json"
    return read_vocabulary(loaded, read_borders(corpus) if corpus.exists() else find_borders(loaded), vocab_size)


def _write_header(
    path: Path,
    name: str,
    architecture: str,
    config: ModelConfig,
    vocabulary: Vocabulary,
    layout: Layout,
    dtype: str,
) -> dict[str, Place]:
    """Writes all but the numbers, and tells where these belong."""
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[dtype]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    describe_model(writer, config)
    _describe_vocabulary(writer, vocabulary)
    places, offset = {}, 0
    for tensor, info in layout.infos.items():
        kind = gguf.GGMLQuantizationType[_TENSOR_TYPES[info.dtype]]
        # The numpy type, which bf16 has none of, gives way to the kind.
        writer.add_tensor_info(tensor, info.shape, np.dtype("f4"), info.nbytes, kind)
        places[tensor] = Place(path, offset, info)
        offset += writer.ggml_pad(info.nbytes, writer.data_alignment)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()
    start = writer.ggml_pad(path.stat().st_size, writer.data_alignment)
    with path.open("r+b") as file:
        file.truncate(start + offset)
    return {tensor: Place(path, start + place.offset, place.info) for tensor, place in places.items()}


def _describe_vocabulary(writer: "GGUFWriter", vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.words)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    writer.add_token_merges(vocabulary.merges)
    writer.add_bos_token_id(vocabulary.bos_id)
    writer.add_eos_token_id(vocabulary.eos_id)
    writer.add_add_bos_token(vocabulary.adds_bos)
    writer.add_add_eos_token(False)
