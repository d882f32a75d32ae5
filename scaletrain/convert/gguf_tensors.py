"""The tensors of a GGUF file: how each is made of the model's own.

llama.cpp's architecture ``llama`` rotates neighbours, as the paper does, where this project and Hugging Face's models
rotate the halves of a head. So the rows of its queries and keys stand in another order: row ``2 j + i`` of a head is
here row ``i H/2 + j``. The other architectures rotate halves too.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from scaletrain.config.schema import ModelConfig
from scaletrain.convert.pairs import Copy, View
from scaletrain.convert.tensors import TensorInfo
from scaletrain.model.positions import rotary_frequencies
from scaletrain.model.stack import rotary_of

ROPE_FACTORS = "rope_freqs.weight"

# Our modules, and how gguf.MODEL_TENSOR calls them.
_ONCE = {"embedding": "TOKEN_EMBD", "position_embedding": "POS_EMBD", "norm": "OUTPUT_NORM", "output": "OUTPUT"}
_QKV = ("q", "k", "v")
_IN_EACH_LAYER = {
    "attention_norm": "ATTN_NORM",
    "attention.q": "ATTN_Q",
    "attention.k": "ATTN_K",
    "attention.v": "ATTN_V",
    "attention.q_norm": "ATTN_Q_NORM",
    "attention.k_norm": "ATTN_K_NORM",
    "attention.out": "ATTN_OUT",
    "feed_forward_norm": "FFN_NORM",
    "feed_forward.gate": "FFN_GATE",
    "feed_forward.up": "FFN_UP",
    "feed_forward.down": "FFN_DOWN",
}


@dataclass(frozen=True)
class Layout:
    """What a file holds.

    Attributes:
        infos: Shape and type of each of its tensors, in the file's order.
        copies: What they are made of.
    """

    infos: Mapping[str, TensorInfo]
    copies: tuple[Copy, ...]


def lay_out_tensors(
    architecture: str, config: ModelConfig, source: Mapping[str, TensorInfo], dtype: torch.dtype
) -> Layout:
    """Decides which tensors a file holds, and of what they are made.

    Args:
        architecture: What ``architecture_of`` found.
        config: The model's description.
        source: The model's tensors, those that the description asks for, by their names in
            ``Transformer.state_dict()``; tied ones once.
        dtype: Type of the matrices. All else stays fp32, since llama.cpp calculates with norms, biases and positions in
            fp32 only.

    Returns:
        The layout.
    """
    joins_qkv = architecture == "gpt2"
    infos: dict[str, TensorInfo] = {}
    copies = []
    if config.rope_scaling == "llama3":
        infos[ROPE_FACTORS] = TensorInfo((config.rotary_dim // 2,), torch.float32)
    for name, info in source.items():
        target = _target_name(name, joins_qkv)
        part = _QKV.index(name.split(".")[3]) if ".attn_qkv." in target else None
        rows, *columns = info.shape
        shape = (rows if part is None else len(_QKV) * rows, *columns)
        is_matrix = len(shape) > 1 and not target.startswith("position_embd.")
        infos[target] = TensorInfo(shape, dtype if is_matrix else torch.float32)
        turned = _turned_heads(name, config) if architecture == "llama" else None
        if turned is None:
            copies.append(Copy(_whole(name, info.numel), _whole(target, info.numel, (part or 0) * info.numel)))
        else:
            copies.append(_halves_to_neighbours(name, target, turned, info))
    return Layout(infos, tuple(copies))


def rope_factors(config: ModelConfig) -> Tensor:
    """The numbers by which llama.cpp divides the rotary frequencies of a model with ``rope_scaling = llama3``.

    Args:
        config: The model's description.

    Returns:
        (rotary_dim / 2,) in fp32.
    """
    rotary = rotary_of(config)
    here = torch.device("cpu")
    return rotary_frequencies(rotary._replace(scaling="none"), here) / rotary_frequencies(rotary, here)


def _target_name(name: str, joins_qkv: bool) -> str:
    """Name in the file, such as blk.3.attn_q.weight, of a tensor of ours, such as blocks.3.attention.q.weight."""
    from gguf import MODEL_TENSOR, TENSOR_NAMES

    module, _, suffix = name.rpartition(".")
    layer = None
    if module.startswith("blocks."):
        _, layer, module = module.split(".", 2)
    key = (_ONCE if layer is None else _IN_EACH_LAYER)[module]
    if joins_qkv and key in ("ATTN_Q", "ATTN_K", "ATTN_V"):
        key = "ATTN_QKV"
    return f"{TENSOR_NAMES[MODEL_TENSOR[key]].format(bid=layer)}.{suffix}"


def _whole(name: str, numel: int, offset: int = 0) -> View:
    return View(name, (numel,), (1,), offset)


def _turned_heads(name: str, config: ModelConfig) -> int | None:
    """Heads of a query's or key's weight or bias, whose rows are put in another order."""
    if ".attention.q." in name:
        return config.n_heads
    return config.n_kv_heads if ".attention.k." in name else None


def _halves_to_neighbours(name: str, target: str, n_heads: int, info: TensorInfo) -> Copy:
    """Copies row i H/2 + j of each head to its row 2 j + i."""
    width = info.numel // info.shape[0]
    half = info.shape[0] // n_heads // 2
    shape = (n_heads, 2, half, width)
    ours = View(name, shape, (2 * half * width, half * width, width, 1))
    return Copy(ours, View(target, shape, (2 * half * width, width, 2 * width, 1)))
