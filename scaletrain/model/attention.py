"""Self-attention and cross attention, their masks, and the cache of keys and values for generation.

Shapes: B batch, T time (queries), S time (keys, or tokens of the source), D d_model, N heads, K key/value heads, H
head_dim.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from scaletrain.model.document_attention import attend_within_documents, can_attend_within_documents
from scaletrain.model.layers import Linear
from scaletrain.model.norms import RMSNorm
from scaletrain.model.positions import rotate


class LayerCache:
    """The keys and values of one layer, in tensors of fixed length that are filled from the left.

    The tensors are made at the first ``append``, which knows their type (under autocast it is not the weights') and the
    number of rows.

    Args:
        max_len: tokens that fit in.
    """

    def __init__(self, max_len: int) -> None:
        self.max_len = max_len
        self.length = 0
        self._k_BKSH: Tensor | None = None
        self._v_BKSH: Tensor | None = None

    def append(self, k_BKTH: Tensor, v_BKTH: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values of new tokens.

        Args:
            k_BKTH: keys of the new tokens.
            v_BKTH: values of the new tokens.

        Returns:
            Keys and values of all tokens so far, each (B, K, length, H), as views of the cache.

        Raises:
            ValueError: there is no room for the new tokens.
        """
        end = self.length + k_BKTH.shape[2]
        if end > self.max_len:
            raise ValueError(f"the cache holds {self.max_len} tokens and cannot take the {end}th; clear() it first")
        B, K, _, H = k_BKTH.shape
        if self._k_BKSH is None or self._v_BKSH is None or (self.length == 0 and len(self._k_BKSH) != B):
            self._k_BKSH = k_BKTH.new_empty(B, K, self.max_len, H)
            self._v_BKSH = v_BKTH.new_empty(B, K, self.max_len, H)
        self._k_BKSH[:, :, self.length : end] = k_BKTH
        self._v_BKSH[:, :, self.length : end] = v_BKTH
        self.length = end
        return self._k_BKSH[:, :, :end], self._v_BKSH[:, :, :end]

    def reorder(self, rows_B: Tensor) -> None:
        """Let row i go on from what was row ``rows_B[i]``."""
        if self._k_BKSH is not None and self._v_BKSH is not None:
            self._k_BKSH, self._v_BKSH = self._rows_of(self._k_BKSH, rows_B), self._rows_of(self._v_BKSH, rows_B)

    def _rows_of(self, filled_BKSH: Tensor, rows_B: Tensor) -> Tensor:
        """The rows, in the same memory where they are as many; only what is filled is copied."""
        kept_BKSH = filled_BKSH[:, :, : self.length][rows_B]
        if len(rows_B) != len(filled_BKSH):
            filled_BKSH = filled_BKSH.new_empty(len(rows_B), *filled_BKSH.shape[1:])
        filled_BKSH[:, :, : self.length] = kept_BKSH
        return filled_BKSH


class CrossCache:
    """The keys and values that one layer has computed from the source."""

    def __init__(self) -> None:
        self.stored: tuple[Tensor, Tensor] | None = None

    def reorder(self, rows_B: Tensor) -> None:
        """Let row i go on from what was row ``rows_B[i]``."""
        if self.stored is not None:
            k_BKSH, v_BKSH = self.stored
            self.stored = k_BKSH[rows_B], v_BKSH[rows_B]


class KVCache:
    """The keys and values of all layers, for generation token by token.

    Args:
        n_layers: layers of the model, or of its decoder.
        max_len: tokens that fit in.
    """

    def __init__(self, n_layers: int, max_len: int) -> None:
        self.layers = [LayerCache(max_len) for _ in range(n_layers)]
        self.cross = [CrossCache() for _ in range(n_layers)]

    @property
    def length(self) -> int:
        """Tokens stored so far."""
        return self.layers[0].length

    def clear(self) -> None:
        """Forget all tokens, and keep the memory for the next ones."""
        for layer, cross in zip(self.layers, self.cross, strict=True):
            layer.length, cross.stored = 0, None

    def reorder(self, rows_B: Tensor, within_sources: bool = False) -> None:
        """Let row i go on from what was row ``rows_B[i]``, as a search does that follows several texts.

        Args:
            rows_B: rows to keep, int64; a row may come several times, and their number may change.
            within_sources: whether each row goes on from one of the same source, so that what was computed from the
                source can stay where it is.
        """
        for layer, cross in zip(self.layers, self.cross, strict=True):
            layer.reorder(rows_B)
            if not within_sources:
                cross.reorder(rows_B)


class Visibility(NamedTuple):
    """Which keys a query sees: by a mask, by documents, by the causal rule alone, or (none of them) all.

    The mask is true for a key that is seen, or a number that is added to its score.
    """

    mask: Tensor | None
    is_causal: bool
    documents: Tensor | None = None


def visible_keys(
    tokens_BT: Tensor,
    documents_BT: Tensor | None,
    past_len: int,
    *,
    n_heads: int,
    dropout: float,
    causal: bool = True,
    window: int = 0,
    bias_BNTS: Tensor | None = None,
) -> Visibility:
    """Decide once per forward pass, for all layers that see equally far, which keys each query sees.

    Args:
        tokens_BT: the new tokens; only shape and device are used.
        documents_BT: number of the document that each token belongs to, which never decreases along a row; a token
            sees its own document only. None leaves the causal rule alone, for which attention kernels need no mask.
        past_len: tokens in the cache before the new ones.
        n_heads: query heads.
        dropout: share of attention weights dropped in this pass.
        causal: whether no token sees one after it.
        window: tokens that a token sees, itself and those before it; 0 for all. Only with ``causal``.
        bias_BNTS: added to the scores, for relative positions.

    Returns:
        The documents, where attention within each of them is to be had and pays; a Boolean mask (B, 1, T, T) or
        (T, S) where else one is needed; or the kernel's own causal rule. With a bias always a mask of numbers.
    """
    seen = _rule(tokens_BT, documents_BT, past_len, n_heads, dropout, causal, window, bias_BNTS is not None)
    if bias_BNTS is None:
        return seen
    if seen.mask is not None:
        bias_BNTS = bias_BNTS.masked_fill(~seen.mask, -math.inf)
    return Visibility(bias_BNTS, is_causal=False)


def visible_memory(source_mask_BS: Tensor | None) -> Visibility:
    """Decide which tokens of the source the decoder sees.

    Args:
        source_mask_BS: true at real tokens; None where all are.

    Returns:
        A mask (B, 1, 1, S), or all. A source without any real token is seen as it is, since of no keys there is no
        mean: nothing is learnt from such a row, which only fills up a batch.
    """
    if source_mask_BS is None:
        return Visibility(None, is_causal=False)
    seen_BS = source_mask_BS | ~source_mask_BS.any(-1, keepdim=True)
    return Visibility(seen_BS[:, None, None, :], is_causal=False)


def _rule(
    tokens_BT: Tensor,
    documents_BT: Tensor | None,
    past_len: int,
    n_heads: int,
    dropout: float,
    causal: bool,
    window: int,
    needs_mask: bool,
) -> Visibility:
    T = tokens_BT.shape[1]
    end = past_len + T
    window = window if window < end else 0  # a window that holds all tokens hides none
    if documents_BT is not None:
        by_documents = can_attend_within_documents(tokens_BT.device, T, n_heads, dropout)
        if by_documents and causal and not window and not needs_mask:
            return Visibility(None, is_causal=True, documents=documents_BT)
        mask_BTT = documents_BT.unsqueeze(-1) == documents_BT.unsqueeze(-2)
        if causal:
            mask_BTT = _near(mask_BTT.tril(), 0, window)
        return Visibility(mask_BTT.unsqueeze(1), is_causal=False)
    if not causal or (T == 1 and not window):
        return Visibility(None, is_causal=False)
    if past_len == 0 and not window and not needs_mask:
        return Visibility(None, is_causal=True)
    mask_TS = torch.ones(T, end, dtype=torch.bool, device=tokens_BT.device).tril(diagonal=past_len)
    return Visibility(_near(mask_TS, past_len, window), is_causal=False)


def _near(mask: Tensor, past_len: int, window: int) -> Tensor:
    """Hides from each query the keys before its window."""
    return mask.triu(diagonal=past_len - window + 1) if window else mask


class _Heads(nn.Module):
    """The projections of attention, and what is done with them.

    The projections are separate modules, so that adapters and conversions find each under its own name.

    Args:
        d_model: width of the residual stream.
        n_heads: query heads.
        n_kv_heads: key/value heads; divides ``n_heads``.
        head_dim: width of a head; ``n_heads * head_dim`` need not be ``d_model``.
        bias: whether ``q``, ``k`` and ``v`` have biases.
        out_bias: whether ``out`` has one.
        norm_eps: of an RMSNorm over each head of queries and keys, before their rotation; None for no such norm.
        is_scaled: whether scores are divided by ``sqrt(head_dim)``.
        dropout: share of attention weights dropped in training.
        init_std: standard deviation of the initial weights of ``q``, ``k`` and ``v``.
        residual_std: the same for ``out``, whose output is added to the residual stream.
    """

    def __init__(
        self,
        d_model: int,
        *,
        n_heads: int,
        n_kv_heads: int,
        head_dim: int,
        bias: bool,
        out_bias: bool,
        norm_eps: float | None,
        is_scaled: bool,
        dropout: float,
        init_std: float,
        residual_std: float,
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.is_scaled = is_scaled
        self.dropout = dropout
        self.is_grouped = n_kv_heads < n_heads
        self.q = Linear(d_model, n_heads * head_dim, bias=bias, init_std=init_std)
        self.k = Linear(d_model, n_kv_heads * head_dim, bias=bias, init_std=init_std)
        self.v = Linear(d_model, n_kv_heads * head_dim, bias=bias, init_std=init_std)
        self.out = Linear(n_heads * head_dim, d_model, bias=out_bias, init_std=residual_std)
        self.has_norms = norm_eps is not None
        if norm_eps is not None:
            self.q_norm = RMSNorm(head_dim, norm_eps)
            self.k_norm = RMSNorm(head_dim, norm_eps)

    def _queries(self, x_BTD: Tensor) -> Tensor:
        q_BNTH = self._heads(self.q(x_BTD))
        if self.has_norms:
            q_BNTH = self.q_norm(q_BNTH)
        # The kernels divide all scores.
        return q_BNTH if self.is_scaled else q_BNTH * math.sqrt(self.head_dim)

    def _keys_values(self, x_BSD: Tensor) -> tuple[Tensor, Tensor]:
        k_BKSH, v_BKSH = self._heads(self.k(x_BSD)), self._heads(self.v(x_BSD))
        return self.k_norm(k_BKSH) if self.has_norms else k_BKSH, v_BKSH

    def _mix(self, q_BNTH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, visibility: Visibility) -> Tensor:
        if visibility.documents is not None:
            mixed_BNTH = attend_within_documents(q_BNTH, k_BKSH, v_BKSH, visibility.documents)
        else:
            mask = visibility.mask
            if mask is not None and mask.is_floating_point():
                mask = mask.to(q_BNTH.dtype)  # the kernels want it so; under autocast it is not
            mixed_BNTH = functional.scaled_dot_product_attention(
                q_BNTH,
                k_BKSH,
                v_BKSH,
                attn_mask=mask,
                dropout_p=self.dropout if self.training else 0.0,
                is_causal=visibility.is_causal,
                enable_gqa=self.is_grouped,
            )
        out_BTD: Tensor = self.out(mixed_BNTH.transpose(1, 2).flatten(2))
        return out_BTD

    def _heads(self, x: Tensor) -> Tensor:
        B, T, _ = x.shape
        return x.view(B, T, -1, self.head_dim).transpose(1, 2)


class Attention(_Heads):
    """Self-attention with as many or fewer key/value heads than query heads."""

    def forward(
        self,
        x_BTD: Tensor,
        visibility: Visibility,
        rotary: tuple[Tensor, Tensor] | None,
        cache: LayerCache | None,
    ) -> Tensor:
        q_BNTH = self._queries(x_BTD)
        k_BKTH, v_BKTH = self._keys_values(x_BTD)
        if rotary is not None:
            q_BNTH, k_BKTH = rotate(q_BNTH, rotary), rotate(k_BKTH, rotary)
        k_BKSH, v_BKSH = (k_BKTH, v_BKTH) if cache is None else cache.append(k_BKTH, v_BKTH)
        return self._mix(q_BNTH, k_BKSH, v_BKSH, visibility)


class CrossAttention(_Heads):
    """Attention of the decoder's tokens to what the encoder made of the source."""

    def forward(self, x_BTD: Tensor, visibility: Visibility, memory_BSD: Tensor, cache: CrossCache | None) -> Tensor:
        if cache is None or cache.stored is None:
            keys_values = self._keys_values(memory_BSD)
            if cache is not None:
                cache.stored = keys_values
        else:
            keys_values = cache.stored
        return self._mix(self._queries(x_BTD), *keys_values, visibility)
