"""A stack of layers from tokens to hidden states: a whole language model but for its outputs, an encoder, or a decoder.

Names of its weights: ``embedding  position_embedding  segment_embedding  embedding_norm  position_bias
blocks.I.attention_norm  blocks.I.attention.{q,k,v,out,q_norm,k_norm}  blocks.I.cross_attention_norm
blocks.I.cross_attention.{q,k,v,out,q_norm,k_norm}  blocks.I.feed_forward_norm  blocks.I.feed_forward.{gate,up,down}
norm``, as far as the description asks for them.

Shapes: B batch, T time, S tokens of the source, D d_model, N heads.
"""

import functools
import math
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from scaletrain.config.schema import ModelConfig
from scaletrain.errors import ConfigError
from scaletrain.model.attention import (
    Attention,
    CrossAttention,
    CrossCache,
    KVCache,
    LayerCache,
    Visibility,
    visible_keys,
    visible_memory,
)
from scaletrain.model.layers import Embedding, FeedForward
from scaletrain.model.norms import build_norm
from scaletrain.model.positions import Rotary, distance_buckets, rotary_tables, sinusoidal_encoding

_Heads = TypeVar("_Heads", Attention, CrossAttention)


class Block(nn.Module):
    """One layer: attention and feed-forward, each added to the residual stream, which is normalised before or behind.

    A decoder's has attention to the source between the two.

    Args:
        config: the model's description.
        n_layers: layers of the stack.
        crosses: whether it attends to a source.
    """

    def __init__(self, config: ModelConfig, *, n_layers: int, crosses: bool) -> None:
        super().__init__()
        # So many branches add up in the residual stream; this keeps the variance of their sum independent of depth.
        residual_std = config.init_std / math.sqrt((3 if crosses else 2) * n_layers)
        self.attention_norm = _norm(config)
        self.attention = _attention(Attention, config, residual_std)
        self.crosses = crosses
        if crosses:
            self.cross_attention_norm = _norm(config)
            self.cross_attention = _attention(CrossAttention, config, residual_std)
        self.feed_forward_norm = _norm(config)
        self.feed_forward = FeedForward(
            config.d_model,
            config.d_ff,
            activation=config.activation,
            bias=config.bias,
            init_std=config.init_std,
            residual_std=residual_std,
        )
        self.dropout = nn.Dropout(config.dropout)
        self.is_parallel = config.parallel_residual
        self.norms_sums = config.norm_position == "post"

    def forward(
        self,
        x_BTD: Tensor,
        visibility: Visibility,
        rotary: tuple[Tensor, Tensor] | None,
        cache: LayerCache | None,
        memory_BSD: Tensor | None = None,
        memory_visibility: Visibility | None = None,
        memory_cache: CrossCache | None = None,
    ) -> Tensor:
        crossing = (memory_visibility, memory_BSD, memory_cache)
        if self.norms_sums:
            x_BTD = self.attention_norm(x_BTD + self.dropout(self.attention(x_BTD, visibility, rotary, cache)))
            if self.crosses:
                x_BTD = self.cross_attention_norm(x_BTD + self.dropout(self.cross_attention(x_BTD, *crossing)))
            normed_BTD: Tensor = self.feed_forward_norm(x_BTD + self.dropout(self.feed_forward(x_BTD)))
            return normed_BTD
        attended_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), visibility, rotary, cache))
        if self.crosses:
            read_BTD = self.cross_attention_norm(attended_BTD)
            attended_BTD = attended_BTD + self.dropout(self.cross_attention(read_BTD, *crossing))
        read_BTD = x_BTD if self.is_parallel else attended_BTD
        sum_BTD: Tensor = attended_BTD + self.dropout(self.feed_forward(self.feed_forward_norm(read_BTD)))
        return sum_BTD


class Stack(nn.Module):
    """Embeddings, layers, and the norm behind them.

    Initialisation is GPT-2's: weights normal with ``init_std``, divided by the root of the number of branches where
    their output is added to the residual stream, biases zero, norms one (Radford et al. 2019, section 2.3).

    Args:
        config: the model's description.
        n_layers: layers.
        causal: whether no token sees one after it.
        crosses: whether each layer attends to a source.
        checkpoint_activations: keep only the input of each block in training, and recompute the rest in the backward
            pass.
    """

    def __init__(
        self, config: ModelConfig, *, n_layers: int, causal: bool, crosses: bool, checkpoint_activations: bool
    ) -> None:
        super().__init__()
        self.config = config
        self.causal = causal
        self.checkpoint_activations = checkpoint_activations
        # Where the output layer is the same tensor and scaled, its logits begin as wide as without the scale.
        embedding_std = config.init_std / (config.output_scale if config.tie_embeddings else 1.0)
        self.embedding = Embedding(config.vocab_size, config.d_model, init_std=embedding_std)
        if config.positions == "learned":
            self.position_embedding = Embedding(config.max_seq_len, config.d_model, init_std=config.init_std)
        if config.positions == "relative":
            self.position_bias = Embedding(config.relative_buckets, config.n_heads, init_std=config.init_std)
        if config.n_segments:
            self.segment_embedding = Embedding(config.n_segments, config.d_model, init_std=config.init_std)
        if config.embedding_norm:
            self.embedding_norm = _norm(config)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, n_layers=n_layers, crosses=crosses) for _ in range(n_layers))
        if config.norm_position == "pre":
            self.norm = _norm(config)

    def run(
        self,
        tokens_BT: Tensor,
        positions_BT: Tensor | None = None,
        documents_BT: Tensor | None = None,
        cache: KVCache | None = None,
        segments_BT: Tensor | None = None,
        memory_BSD: Tensor | None = None,
        memory_mask_BS: Tensor | None = None,
    ) -> Tensor:
        """Compute the residual stream behind the last layer, normalised.

        Args:
            tokens_BT: int64 tokens.
            positions_BT: int64 position of each token in its document; default 0, 1, 2, ... after what is in the cache.
            documents_BT: integer number of each token's document, which never decreases along a row. Given, no token
                sees another document; without it, a token sees all tokens before it, or all.
            cache: keys and values of the tokens before these; the new ones are appended.
            segments_BT: int64 segment of each token, for a model with ``n_segments``; default 0.
            memory_BSD: of a decoder, what the encoder made of the source.
            memory_mask_BS: which of it are real tokens; None for all.

        Returns:
            (B, T, D) in the type of the computation.

        Raises:
            ConfigError: more tokens than learned positions.
            ValueError: both documents and a cache are given, the documents' numbers decrease along a row, the cache is
                full, or a bidirectional model is given one.
        """
        if cache is not None and (documents_BT is not None or not self.causal):
            raise ValueError("a cache continues one document per row of a causal model; leave the cache out")
        past_len = 0 if cache is None else cache.length
        if positions_BT is None:
            positions_BT = torch.arange(past_len, past_len + tokens_BT.shape[1], device=tokens_BT.device).unsqueeze(0)
        visibilities = self._visibilities(tokens_BT, documents_BT, positions_BT, past_len)
        rotary = rotary_tables(positions_BT, rotary_of(self.config)) if self.config.positions == "rotary" else None
        memory = (memory_BSD, visible_memory(memory_mask_BS))
        x_BTD = self._embed(tokens_BT, positions_BT, segments_BT, past_len)
        for index, block in enumerate(self.blocks):
            visibility = visibilities[index]
            if self.checkpoint_activations and self.training and cache is None:
                x_BTD = checkpoint(block, x_BTD, visibility, rotary, None, *memory, use_reentrant=False)
            elif cache is None:
                x_BTD = block(x_BTD, visibility, rotary, None, *memory)
            else:
                x_BTD = block(x_BTD, visibility, rotary, cache.layers[index], *memory, cache.cross[index])
        if self.config.norm_position == "post":
            return x_BTD
        normed_BTD: Tensor = self.norm(x_BTD)
        return normed_BTD

    def _visibilities(
        self, tokens_BT: Tensor, documents_BT: Tensor | None, positions_BT: Tensor, past_len: int
    ) -> list[Visibility]:
        """What each layer sees."""
        see = functools.partial(
            visible_keys,
            tokens_BT,
            documents_BT,
            past_len,
            n_heads=self.config.n_heads,
            dropout=self.config.attention_dropout if self.training else 0.0,
            causal=self.causal,
            bias_BNTS=self._bias(positions_BT, past_len),
        )
        n_layers, n_far = len(self.blocks), self.config.sliding_window_from_layer
        if not self.config.sliding_window:
            return [see()] * n_layers
        near = see(window=self.config.sliding_window)
        far = [see()] * min(n_far, n_layers) if n_far else []
        return far + [near] * (n_layers - len(far))

    def _bias(self, positions_BT: Tensor, past_len: int) -> Tensor | None:
        """What relative positions add to the scores (B, N, T, S)."""
        if self.config.positions != "relative":
            return None
        past_1P = torch.arange(past_len, device=positions_BT.device).unsqueeze(0)
        buckets_BTS = distance_buckets(
            positions_BT,
            torch.cat((past_1P.expand(positions_BT.shape[0], -1), positions_BT), dim=1),
            n_buckets=self.config.relative_buckets,
            max_distance=self.config.relative_max_distance,
            both_sides=not self.causal,
        )
        bias_BNTS: Tensor = self.position_bias(buckets_BTS).permute(0, 3, 1, 2)
        return bias_BNTS

    def _embed(self, tokens_BT: Tensor, positions_BT: Tensor, segments_BT: Tensor | None, past_len: int) -> Tensor:
        x_BTD: Tensor = self.embedding(tokens_BT)
        if self.config.n_segments:
            x_BTD = x_BTD + self.segment_embedding(torch.zeros_like(tokens_BT) if segments_BT is None else segments_BT)
        if self.config.positions == "learned":
            if past_len + tokens_BT.shape[1] > self.config.max_seq_len:
                raise ConfigError(
                    f"a sequence of {past_len + tokens_BT.shape[1]} tokens does not fit model.max_seq_len = "
                    f"{self.config.max_seq_len} learned positions; shorten it, or train with a larger model.max_seq_len"
                )
            x_BTD = x_BTD + self.position_embedding(positions_BT)
        elif self.config.positions == "sinusoidal":
            # Encodings have unit amplitude, embeddings init_std: without the factor, which the paper has too
            # (Vaswani et al. 2017, section 3.4), the tokens would drown in their positions.
            encoding_BTD = sinusoidal_encoding(positions_BT, self.config.d_model)
            x_BTD = x_BTD * math.sqrt(self.config.d_model) + encoding_BTD.to(x_BTD.dtype)
        if self.config.embedding_norm:
            x_BTD = self.embedding_norm(x_BTD)
        embedded_BTD: Tensor = self.dropout(x_BTD)
        return embedded_BTD


def rotary_of(config: ModelConfig) -> Rotary:
    """How a model rotates its queries and keys."""
    return Rotary(
        dim=config.rotary_dim,
        theta=config.rope_theta,
        scaling=config.rope_scaling,
        factor=config.rope_factor,
        low_freq_factor=config.rope_low_freq_factor,
        high_freq_factor=config.rope_high_freq_factor,
        original_len=config.rope_original_max_seq_len,
    )


def _norm(config: ModelConfig) -> nn.Module:
    return build_norm(config.norm, config.d_model, eps=config.norm_eps, bias=config.bias)


def _attention(kind: type[_Heads], config: ModelConfig, residual_std: float) -> _Heads:
    return kind(
        config.d_model,
        n_heads=config.n_heads,
        n_kv_heads=config.n_kv_heads,
        head_dim=config.head_dim,
        bias=config.qkv_bias,
        out_bias=config.attention_out_bias,
        norm_eps=config.norm_eps if config.qk_norm else None,
        is_scaled=config.attention_scale,
        dropout=config.attention_dropout,
        init_std=config.init_std,
        residual_std=residual_std,
    )
