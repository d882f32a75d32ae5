"""The Transformer language model, described by a ModelConfig and not by subclasses.

Names of its weights: ``embedding  position_embedding  blocks.I.attention_norm  blocks.I.attention.{q,k,v,out}
blocks.I.feed_forward_norm  blocks.I.feed_forward.{gate,up,down}  norm  output``.

Shapes: B batch, T time, D d_model, H head_dim, V vocabulary.
"""

import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from scaletrain.config.schema import ModelConfig
from scaletrain.errors import ConfigError
from scaletrain.model.attention import Attention, KVCache, LayerCache, Visibility, visible_keys
from scaletrain.model.layers import Embedding, FeedForward, Linear
from scaletrain.model.norms import build_norm
from scaletrain.model.positions import rotary_tables, sinusoidal_encoding


class Block(nn.Module):
    """One layer: attention and feed-forward, each normalised before and added to the residual stream after.

    Args:
        config: the model's description.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        # 2 n_layers branches add up in the residual stream; this keeps the variance of their sum independent of depth.
        residual_std = config.init_std / math.sqrt(2 * config.n_layers)
        self.attention_norm = build_norm(config.norm, config.d_model, eps=config.norm_eps, bias=config.bias)
        self.attention = Attention(
            config.d_model,
            n_heads=config.n_heads,
            n_kv_heads=config.n_kv_heads,
            head_dim=config.head_dim,
            bias=config.bias,
            dropout=config.attention_dropout,
            init_std=config.init_std,
            residual_std=residual_std,
        )
        self.feed_forward_norm = build_norm(config.norm, config.d_model, eps=config.norm_eps, bias=config.bias)
        self.feed_forward = FeedForward(
            config.d_model,
            config.d_ff,
            activation=config.activation,
            bias=config.bias,
            init_std=config.init_std,
            residual_std=residual_std,
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x_BTD: Tensor,
        visibility: Visibility,
        rotary: tuple[Tensor, Tensor] | None,
        cache: LayerCache | None,
    ) -> Tensor:
        x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), visibility, rotary, cache))
        x_BTD = x_BTD + self.dropout(self.feed_forward(self.feed_forward_norm(x_BTD)))
        return x_BTD


class Transformer(nn.Module):
    """A causal language model.

    Initialisation is GPT-2's: weights normal with ``init_std``, divided by ``sqrt(2 n_layers)`` where their output is
    added to the residual stream, biases zero, norms one (Radford et al. 2019, section 2.3).

    Args:
        config: the model's description.
        checkpoint_activations: keep only the input of each block in training, and recompute the rest in the backward
            pass.

    Raises:
        ConfigError: the numbers of heads do not divide, or rotary positions meet an odd ``head_dim``.
    """

    def __init__(self, config: ModelConfig, *, checkpoint_activations: bool = False) -> None:
        super().__init__()
        _check(config)
        self.config = config
        self.checkpoint_activations = checkpoint_activations
        self.embedding = Embedding(config.vocab_size, config.d_model, init_std=config.init_std)
        if config.positions == "learned":
            self.position_embedding = Embedding(config.max_seq_len, config.d_model, init_std=config.init_std)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = build_norm(config.norm, config.d_model, eps=config.norm_eps, bias=config.bias)
        self.output = Linear(config.d_model, config.vocab_size, bias=False, init_std=config.init_std)
        if config.tie_embeddings:
            # The very same Parameter: ZeRO-3 then gathers it for this module as one of its own.
            self.output.weight = self.embedding.weight

    def forward(
        self,
        tokens_BT: Tensor,
        positions_BT: Tensor | None = None,
        documents_BT: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Compute the logits of the token after each token.

        Args:
            tokens_BT: int64 tokens.
            positions_BT: int64 position of each token in its document; default 0, 1, 2, ... after what is in the cache.
            documents_BT: integer number of each token's document, which never decreases along a row. Given, no token
                sees another document; without it, a token sees all tokens before it.
            cache: keys and values of the tokens before these; the new ones are appended.

        Returns:
            Logits (B, T, V) in the type of the computation.

        Raises:
            ConfigError: more tokens than learned positions.
            ValueError: both documents and a cache are given, the documents' numbers decrease along a row, or the cache
                is full.
        """
        logits_BTV: Tensor = self.output(self.hidden(tokens_BT, positions_BT, documents_BT, cache))
        return logits_BTV

    def hidden(
        self,
        tokens_BT: Tensor,
        positions_BT: Tensor | None = None,
        documents_BT: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Compute what the output layer reads: the normalised residual stream.

        Args:
            tokens_BT: as in ``forward``, like the other arguments.
            positions_BT: see ``forward``.
            documents_BT: see ``forward``.
            cache: see ``forward``.

        Returns:
            (B, T, D) in the type of the computation.

        Raises:
            ConfigError: see ``forward``.
            ValueError: see ``forward``.
        """
        if documents_BT is not None and cache is not None:
            raise ValueError("a cache continues one document per row; leave documents_BT out")
        past_len = 0 if cache is None else cache.length
        if positions_BT is None:
            positions_BT = torch.arange(past_len, past_len + tokens_BT.shape[1], device=tokens_BT.device).unsqueeze(0)
        dropout = self.config.attention_dropout if self.training else 0.0
        visibility = visible_keys(tokens_BT, documents_BT, past_len, n_heads=self.config.n_heads, dropout=dropout)
        rotary = None
        if self.config.positions == "rotary":
            rotary = rotary_tables(positions_BT, self.config.head_dim, self.config.rope_theta)
        x_BTD = self._embed(tokens_BT, positions_BT, past_len)
        for index, block in enumerate(self.blocks):
            if self.checkpoint_activations and self.training and cache is None:
                x_BTD = checkpoint(block, x_BTD, visibility, rotary, None, use_reentrant=False)
            else:
                x_BTD = block(x_BTD, visibility, rotary, None if cache is None else cache.layers[index])
        normed_BTD: Tensor = self.norm(x_BTD)
        return normed_BTD

    def _embed(self, tokens_BT: Tensor, positions_BT: Tensor, past_len: int) -> Tensor:
        x_BTD: Tensor = self.embedding(tokens_BT)
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
        embedded_BTD: Tensor = self.dropout(x_BTD)
        return embedded_BTD


def _check(config: ModelConfig) -> None:
    if config.n_heads % config.n_kv_heads:
        raise ConfigError(
            f"model.n_heads = {config.n_heads} is not a multiple of model.n_kv_heads = {config.n_kv_heads}; each "
            f"key/value head serves the same number of query heads: choose a divisor of {config.n_heads}"
        )
    if config.positions == "rotary" and config.head_dim % 2:
        raise ConfigError(
            f"model.head_dim = {config.head_dim} is odd, but rotary positions turn pairs of numbers; "
            f"choose an even model.head_dim, or other model.positions"
        )
