"""Attention of packed sequences that computes no score between two documents.

A mask hides the scores between documents after they were computed, and on a CPU turns off the kernel's own causal
rule, which leaves out the half above the diagonal. Here the same kernel runs once for each document. The loop hides in
operators that torch.compile does not look into, so that borders, which differ in every batch, neither break its graph
nor make it compile again.

On a GPU the mask stays: what torch has there for documents (``varlen_attn``, ``flex_attention``) has not been tried.

Shapes: B batch, T time, N heads, K key/value heads, H head_dim.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

# Under it the calls of the kernel cost more than the mask, in bf16: benchmarks/attention_borders_2026-11.md.
MIN_SEQ_LEN = 512

# The kernel's operators are private to torch, and before 2.9 do not take fewer key/value heads; tried from this one on.
_IS_TRIED = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 11)


class Span(NamedTuple):
    """The places of one document in its row.

    Attributes:
        row: the row.
        start: its first place.
        stop: the place after its last one.
    """

    row: int
    start: int
    stop: int


def _n_threads() -> int:
    return torch.get_num_threads()


# All that torch.compiler.assume_constant_result does, but for loading the compiler, which takes each process that
# imports the model a second and 70 MiB.
_n_threads._dynamo_marked_constant = True  # type: ignore[attr-defined]


def can_attend_within_documents(device: torch.device, seq_len: int, n_heads: int, dropout: float) -> bool:
    """Whether ``attend_within_documents`` can take the mask's place and is faster than it.

    Args:
        device: where the model is.
        seq_len: places of a row.
        n_heads: query heads.
        dropout: share of attention weights dropped.

    Returns:
        Whether this is a CPU with a torch that was tried, without dropout (which the kernel does not know), rows are
        long enough, and the heads, over which alone a call's backward pass is spread, keep all threads busy.
    """
    return device.type == "cpu" and _IS_TRIED and dropout == 0.0 and seq_len >= MIN_SEQ_LEN and n_heads >= _n_threads()


def attend_within_documents(q_BNTH: Tensor, k_BKTH: Tensor, v_BKTH: Tensor, documents_BT: Tensor) -> Tensor:
    """Causal attention of each place to the places of its own document.

    Equal to ``scaled_dot_product_attention`` with a mask of ``documents_BT[t] == documents_BT[s] and s <= t``, up to
    rounding, as are the gradients. They can be taken once, not twice.

    Args:
        q_BNTH: queries, on the CPU, in any floating-point type.
        k_BKTH: keys of the same type; K divides N.
        v_BKTH: values, like the keys.
        documents_BT: integer number of each place's document, which never decreases along a row.

    Returns:
        (B, N, T, H), with the memory of a contiguous (B, T, N, H).

    Raises:
        ValueError: the numbers of documents decrease along a row.
    """
    mixed_BNTH: Tensor = _attend(q_BNTH, k_BKTH, v_BKTH, documents_BT)[0]
    return mixed_BNTH


def find_spans(documents_BT: Tensor) -> list[Span]:
    """Find where each document lies.

    Args:
        documents_BT: as for ``attend_within_documents``.

    Returns:
        The spans, which together cover each place once, in the order of rows and places.

    Raises:
        ValueError: see ``attend_within_documents``.
    """
    B, T = documents_BT.shape
    steps_BT = documents_BT.diff(dim=1)
    if bool((steps_BT < 0).any()):
        raise ValueError(
            "documents_BT decreases along a row; number the documents of a row upwards, so that the places of each "
            "lie together"
        )
    starts = [(row, 0) for row in range(B)] + [(row, place + 1) for row, place in steps_BT.nonzero().tolist()]
    starts.sort()
    # The next document of a row begins where one ends; the last one ends with the row.
    stops = [start or T for _, start in [*starts[1:], (B, 0)]]
    return [Span(row, start, stop) for (row, start), stop in zip(starts, stops, strict=True)]


@torch.library.custom_op("scaletrain::attend_within_documents", mutates_args=(), device_types="cpu")
def _attend(q_BNTH: Tensor, k_BKTH: Tensor, v_BKTH: Tensor, documents_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Attention and the logarithm of each row's sum of exponentials (B, N, T), which the backward pass needs."""
    mixed_BNTH, lse_BNT = _empty_results(q_BNTH)
    q_BNTH, k_BKTH, v_BKTH = _readable(q_BNTH), _readable(k_BKTH), _readable(v_BKTH)
    for span in find_spans(documents_BT):
        at = _places(span)
        mixed_BNTH[at], lse_BNT[at] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q_BNTH[at], k_BKTH[at], v_BKTH[at], is_causal=True
        )
    return mixed_BNTH, lse_BNT


@torch.library.custom_op("scaletrain::attend_within_documents_backward", mutates_args=(), device_types="cpu")
def _attend_backward(
    grad_BNTH: Tensor,
    q_BNTH: Tensor,
    k_BKTH: Tensor,
    v_BKTH: Tensor,
    mixed_BNTH: Tensor,
    lse_BNT: Tensor,
    documents_BT: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values."""
    grad_q_BNTH, grad_k_BKTH, grad_v_BKTH = map(_empty_heads, (q_BNTH, k_BKTH, v_BKTH))
    q_BNTH, k_BKTH, v_BKTH, grad_BNTH = map(_readable, (q_BNTH, k_BKTH, v_BKTH, grad_BNTH))
    for span in find_spans(documents_BT):
        at = _places(span)
        grad_q_BNTH[at], grad_k_BKTH[at], grad_v_BKTH[at] = (
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grad_BNTH[at],
                q_BNTH[at],
                k_BKTH[at],
                v_BKTH[at],
                mixed_BNTH[at],
                lse_BNT[at],
                dropout_p=0.0,
                is_causal=True,
            )
        )
    return grad_q_BNTH, grad_k_BKTH, grad_v_BKTH


@_attend.register_fake
def _(q_BNTH: Tensor, k_BKTH: Tensor, v_BKTH: Tensor, documents_BT: Tensor) -> tuple[Tensor, Tensor]:
    return _empty_results(q_BNTH)


@_attend_backward.register_fake
def _(
    grad_BNTH: Tensor,
    q_BNTH: Tensor,
    k_BKTH: Tensor,
    v_BKTH: Tensor,
    mixed_BNTH: Tensor,
    lse_BNT: Tensor,
    documents_BT: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_heads(q_BNTH), _empty_heads(k_BKTH), _empty_heads(v_BKTH)


def _keep_for_backward(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    q_BNTH, k_BKTH, v_BKTH, documents_BT = inputs
    mixed_BNTH, lse_BNT = output
    ctx.save_for_backward(q_BNTH, k_BKTH, v_BKTH, mixed_BNTH, lse_BNT, documents_BT)
    ctx.mark_non_differentiable(lse_BNT)


def _differentiate(ctx: Any, grad_BNTH: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    grad_q_BNTH, grad_k_BKTH, grad_v_BKTH = _attend_backward(grad_BNTH, *ctx.saved_tensors)
    return grad_q_BNTH, grad_k_BKTH, grad_v_BKTH, None


_attend.register_autograd(_differentiate, setup_context=_keep_for_backward)


def _empty_heads(like_BNTH: Tensor) -> Tensor:
    """An uninitialised (B, N, T, H) that the output projection can read without a copy."""
    B, N, T, H = like_BNTH.shape
    return like_BNTH.new_empty(B, T, N, H).transpose(1, 2)


def _empty_results(q_BNTH: Tensor) -> tuple[Tensor, Tensor]:
    B, N, T, _ = q_BNTH.shape
    dtype = torch.float64 if q_BNTH.dtype == torch.float64 else torch.float32
    return _empty_heads(q_BNTH), q_BNTH.new_empty(B, T, N, dtype=dtype).transpose(1, 2)


def _readable(heads_BNTH: Tensor) -> Tensor:
    """The kernel takes the numbers of a head for neighbours in memory, and does not check it."""
    return heads_BNTH if heads_BNTH.stride(-1) == 1 else heads_BNTH.contiguous()


def _places(span: Span) -> tuple[slice, slice, slice]:
    return slice(span.row, span.row + 1), slice(None), slice(span.start, span.stop)
