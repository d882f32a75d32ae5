"""Self-attention, its masks, and the cache of keys and values for generation.

Shapes: B batch, T time (queries), S time (keys), D d_model, N heads, K key/value heads, H head_dim.
"""

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

    The tensors are made at the first ``append``, which knows their type; under autocast it is not the weights'.

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
        if self._k_BKSH is None or self._v_BKSH is None:
            B, K, _, H = k_BKTH.shape
            self._k_BKSH = k_BKTH.new_empty(B, K, self.max_len, H)
            self._v_BKSH = v_BKTH.new_empty(B, K, self.max_len, H)
        self._k_BKSH[:, :, self.length : end] = k_BKTH
        self._v_BKSH[:, :, self.length : end] = v_BKTH
        self.length = end
        return self._k_BKSH[:, :, :end], self._v_BKSH[:, :, :end]


class KVCache:
    """The keys and values of all layers, for generation token by token.

    Args:
        n_layers: layers of the model.
        max_len: tokens that fit in.
    """

    def __init__(self, n_layers: int, max_len: int) -> None:
        self.layers = [LayerCache(max_len) for _ in range(n_layers)]

    @property
    def length(self) -> int:
        """Tokens stored so far."""
        return self.layers[0].length

    def clear(self) -> None:
        """Forget all tokens and keep the memory."""
        for layer in self.layers:
            layer.length = 0


class Visibility(NamedTuple):
    """Which keys a query sees: by a mask, by documents, by the causal rule alone, or (none of them) all."""

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

    Returns:
        The documents, where attention within each of them is to be had and pays; a Boolean mask (B, 1, T, T) or
        (T, S) where else one is needed; or the kernel's own causal rule.
    """
    T = tokens_BT.shape[1]
    end = past_len + T
    window = window if window < end else 0  # a window that holds all tokens hides none
    if documents_BT is not None:
        by_documents = can_attend_within_documents(tokens_BT.device, T, n_heads, dropout)
        if by_documents and causal and not window:
            return Visibility(None, is_causal=True, documents=documents_BT)
        mask_BTT = documents_BT.unsqueeze(-1) == documents_BT.unsqueeze(-2)
        if causal:
            mask_BTT = _near(mask_BTT.tril(), 0, window)
        return Visibility(mask_BTT.unsqueeze(1), is_causal=False)
    if not causal or (T == 1 and not window):
        return Visibility(None, is_causal=False)
    if past_len == 0 and not window:
        return Visibility(None, is_causal=True)
    mask_TS = torch.ones(T, end, dtype=torch.bool, device=tokens_BT.device).tril(diagonal=past_len)
    return Visibility(_near(mask_TS, past_len, window), is_causal=False)


def _near(mask: Tensor, past_len: int, window: int) -> Tensor:
    """Hides from each query the keys before its window."""
    return mask.triu(diagonal=past_len - window + 1) if window else mask


class Attention(nn.Module):
    """Self-attention with as many or fewer key/value heads than query heads.

    The projections are separate modules, so that adapters and conversions find each under its own name.

    Args:
        d_model: width of the residual stream.
        n_heads: query heads.
        n_kv_heads: key/value heads; divides ``n_heads``.
        head_dim: width of a head; ``n_heads * head_dim`` need not be ``d_model``.
        bias: whether ``q``, ``k`` and ``v`` have biases.
        out_bias: whether ``out`` has one.
        norm_eps: of an RMSNorm over each head of queries and keys, before their rotation; None for no such norm.
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
        dropout: float,
        init_std: float,
        residual_std: float,
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
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

    def forward(
        self,
        x_BTD: Tensor,
        visibility: Visibility,
        rotary: tuple[Tensor, Tensor] | None,
        cache: LayerCache | None,
    ) -> Tensor:
        q_BNTH = self._heads(self.q(x_BTD))
        k_BKTH = self._heads(self.k(x_BTD))
        v_BKTH = self._heads(self.v(x_BTD))
        if self.has_norms:
            q_BNTH, k_BKTH = self.q_norm(q_BNTH), self.k_norm(k_BKTH)
        if rotary is not None:
            q_BNTH, k_BKTH = rotate(q_BNTH, rotary), rotate(k_BKTH, rotary)
        k_BKSH, v_BKSH = (k_BKTH, v_BKTH) if cache is None else cache.append(k_BKTH, v_BKTH)
        if visibility.documents is not None:
            mixed_BNTH = attend_within_documents(q_BNTH, k_BKSH, v_BKSH, visibility.documents)
        else:
            mixed_BNTH = functional.scaled_dot_product_attention(
                q_BNTH,
                k_BKSH,
                v_BKSH,
                attn_mask=visibility.mask,
                dropout_p=self.dropout if self.training else 0.0,
                is_causal=visibility.is_causal,
                enable_gqa=self.is_grouped,
            )
        out_BTD: Tensor = self.out(mixed_BNTH.transpose(1, 2).flatten(2))
        return out_BTD

    def _heads(self, x: Tensor) -> Tensor:
        B, T, _ = x.shape
        return x.view(B, T, -1, self.head_dim).transpose(1, 2)
