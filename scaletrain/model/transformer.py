"""The Transformer language model, described by a ModelConfig and not by subclasses.

Names of its weights: ``embedding  position_embedding  segment_embedding  embedding_norm  blocks.I.attention_norm
blocks.I.attention.{q,k,v,out,q_norm,k_norm}  blocks.I.feed_forward_norm  blocks.I.feed_forward.{gate,up,down}  norm
output_transform.{dense,norm}  output  pooler  classifier``, as far as the description asks for them.

Shapes: B batch, T time, D d_model, H head_dim, V vocabulary, C classes.
"""

import functools
import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from scaletrain.config.model_rules import model_problems
from scaletrain.config.schema import ModelConfig
from scaletrain.errors import ConfigError
from scaletrain.model.attention import Attention, KVCache, LayerCache, Visibility, visible_keys
from scaletrain.model.layers import Activation, Embedding, FeedForward, Linear, gelu
from scaletrain.model.norms import build_norm
from scaletrain.model.positions import Rotary, rotary_tables, sinusoidal_encoding


class Block(nn.Module):
    """One layer: attention and feed-forward, each added to the residual stream, which is normalised before or behind.

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
            bias=config.qkv_bias,
            out_bias=config.attention_out_bias,
            norm_eps=config.norm_eps if config.qk_norm else None,
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
        self.is_parallel = config.parallel_residual
        self.norms_sums = config.norm_position == "post"

    def forward(
        self,
        x_BTD: Tensor,
        visibility: Visibility,
        rotary: tuple[Tensor, Tensor] | None,
        cache: LayerCache | None,
    ) -> Tensor:
        if self.norms_sums:
            x_BTD = self.attention_norm(x_BTD + self.dropout(self.attention(x_BTD, visibility, rotary, cache)))
            normed_BTD: Tensor = self.feed_forward_norm(x_BTD + self.dropout(self.feed_forward(x_BTD)))
            return normed_BTD
        attended_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), visibility, rotary, cache))
        read_BTD = x_BTD if self.is_parallel else attended_BTD
        sum_BTD: Tensor = attended_BTD + self.dropout(self.feed_forward(self.feed_forward_norm(read_BTD)))
        return sum_BTD


class OutputTransform(nn.Module):
    """What stands before the output layer in BERT: a linear layer, the activation and a norm.

    Args:
        config: the model's description.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation: Activation = config.activation
        self.dense = Linear(config.d_model, config.d_model, bias=config.bias, init_std=config.init_std)
        self.norm = build_norm(config.norm, config.d_model, eps=config.norm_eps, bias=config.bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        transformed_BTD: Tensor = self.norm(gelu(self.dense(x_BTD), self.activation))
        return transformed_BTD


class Transformer(nn.Module):
    """A language model: causal, or bidirectional as BERT.

    Initialisation is GPT-2's: weights normal with ``init_std``, divided by ``sqrt(2 n_layers)`` where their output is
    added to the residual stream, biases zero, norms one (Radford et al. 2019, section 2.3).

    Args:
        config: the model's description.
        checkpoint_activations: keep only the input of each block in training, and recompute the rest in the backward
            pass.

    Raises:
        ConfigError: what the description asks for cannot be together; see ``model_problems``.
    """

    def __init__(self, config: ModelConfig, *, checkpoint_activations: bool = False) -> None:
        super().__init__()
        if problems := list(model_problems(config)):
            raise ConfigError("; ".join(problems))
        self.config = config
        self.checkpoint_activations = checkpoint_activations
        self.embedding = Embedding(config.vocab_size, config.d_model, init_std=config.init_std)
        if config.positions == "learned":
            self.position_embedding = Embedding(config.max_seq_len, config.d_model, init_std=config.init_std)
        if config.n_segments:
            self.segment_embedding = Embedding(config.n_segments, config.d_model, init_std=config.init_std)
        if config.embedding_norm:
            self.embedding_norm = build_norm(config.norm, config.d_model, eps=config.norm_eps, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        if config.norm_position == "pre":
            self.norm = build_norm(config.norm, config.d_model, eps=config.norm_eps, bias=config.bias)
        if config.output_transform:
            self.output_transform = OutputTransform(config)
        self.output = Linear(config.d_model, config.vocab_size, bias=config.output_bias, init_std=config.init_std)
        if config.tie_embeddings:
            # The very same Parameter: ZeRO-3 then gathers it for this module as one of its own.
            self.output.weight = self.embedding.weight
        if config.pooler:
            self.pooler = Linear(config.d_model, config.d_model, bias=True, init_std=config.init_std)
        if config.n_classes:
            self.classifier = Linear(config.d_model, config.n_classes, bias=True, init_std=config.init_std)

    def forward(
        self,
        tokens_BT: Tensor,
        positions_BT: Tensor | None = None,
        documents_BT: Tensor | None = None,
        cache: KVCache | None = None,
        segments_BT: Tensor | None = None,
    ) -> Tensor:
        """Compute the logits of the token after each token, or of each token where the model is bidirectional.

        Args:
            tokens_BT: int64 tokens.
            positions_BT: int64 position of each token in its document; default 0, 1, 2, ... after what is in the cache.
            documents_BT: integer number of each token's document, which never decreases along a row. Given, no token
                sees another document; without it, a token sees all tokens before it, or all.
            cache: keys and values of the tokens before these; the new ones are appended.
            segments_BT: int64 segment of each token, for a model with ``n_segments``; default 0.

        Returns:
            Logits (B, T, V) in the type of the computation.

        Raises:
            ConfigError: more tokens than learned positions.
            ValueError: both documents and a cache are given, the documents' numbers decrease along a row, the cache is
                full, or a bidirectional model is given one.
        """
        return self.logits(self.hidden(tokens_BT, positions_BT, documents_BT, cache, segments_BT))

    def hidden(
        self,
        tokens_BT: Tensor,
        positions_BT: Tensor | None = None,
        documents_BT: Tensor | None = None,
        cache: KVCache | None = None,
        segments_BT: Tensor | None = None,
    ) -> Tensor:
        """Compute the residual stream behind the last layer, normalised.

        Args:
            tokens_BT: as in ``forward``, like the other arguments.
            positions_BT: see ``forward``.
            documents_BT: see ``forward``.
            cache: see ``forward``.
            segments_BT: see ``forward``.

        Returns:
            (B, T, D) in the type of the computation.

        Raises:
            ConfigError: see ``forward``.
            ValueError: see ``forward``.
        """
        if cache is not None and (documents_BT is not None or not self.config.causal):
            raise ValueError("a cache continues one document per row of a causal model; leave the cache out")
        past_len = 0 if cache is None else cache.length
        if positions_BT is None:
            positions_BT = torch.arange(past_len, past_len + tokens_BT.shape[1], device=tokens_BT.device).unsqueeze(0)
        see = functools.partial(
            visible_keys,
            tokens_BT,
            documents_BT,
            past_len,
            n_heads=self.config.n_heads,
            dropout=self.config.attention_dropout if self.training else 0.0,
            causal=self.config.causal,
        )
        first_near = self.config.sliding_window_from_layer if self.config.sliding_window else self.config.n_layers
        near = see(window=self.config.sliding_window)
        far = see() if first_near else near
        rotary = rotary_tables(positions_BT, rotary_of(self.config)) if self.config.positions == "rotary" else None
        x_BTD = self._embed(tokens_BT, positions_BT, segments_BT, past_len)
        for index, block in enumerate(self.blocks):
            visibility = near if index >= first_near else far
            if self.checkpoint_activations and self.training and cache is None:
                x_BTD = checkpoint(block, x_BTD, visibility, rotary, None, use_reentrant=False)
            else:
                x_BTD = block(x_BTD, visibility, rotary, None if cache is None else cache.layers[index])
        if self.config.norm_position == "post":
            return x_BTD
        normed_BTD: Tensor = self.norm(x_BTD)
        return normed_BTD

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Compute logits from what ``hidden`` returned, or from a part of it.

        Args:
            hidden_BTD: residual stream of any leading shape.

        Returns:
            Logits (B, T, V).
        """
        if self.config.output_transform:
            hidden_BTD = self.output_transform(hidden_BTD)
        logits_BTV: Tensor = self.output(hidden_BTD)
        return logits_BTV

    def pooled(self, hidden_BTD: Tensor) -> Tensor:
        """Compute what stands for each whole sequence, of a model with a ``pooler``.

        Args:
            hidden_BTD: what ``hidden`` returned.

        Returns:
            (B, D), from the first token of each row.
        """
        return torch.tanh(self.pooler(hidden_BTD[:, 0]))

    def class_logits(self, hidden_BTD: Tensor) -> Tensor:
        """Compute the logits of each sequence's classes, of a model with ``n_classes``.

        Args:
            hidden_BTD: what ``hidden`` returned.

        Returns:
            (B, C).
        """
        logits_BC: Tensor = self.classifier(self.pooled(hidden_BTD))
        return logits_BC

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
