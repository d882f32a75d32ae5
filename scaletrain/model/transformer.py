"""The Transformer language model, described by a ModelConfig and not by subclasses.

Names of its weights: those of ``stack.py``, ``output_transform.{dense,norm}  output  pooler  classifier``, as far as
the description asks for them.

Shapes: B batch, T time, D d_model, V vocabulary, C classes.
"""

import torch
from torch import Tensor, nn

from scaletrain.config.model_rules import model_problems
from scaletrain.config.schema import ModelConfig
from scaletrain.errors import ConfigError
from scaletrain.model.attention import KVCache
from scaletrain.model.layers import Activation, Linear, activate, scaled
from scaletrain.model.norms import build_norm
from scaletrain.model.pooling import pool
from scaletrain.model.stack import Stack


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
        transformed_BTD: Tensor = self.norm(activate(self.dense(x_BTD), self.activation))
        return transformed_BTD


class Transformer(Stack):
    """A language model: causal, or bidirectional as BERT.

    Args:
        config: the model's description.
        checkpoint_activations: keep only the input of each block in training, and recompute the rest in the backward
            pass.

    Raises:
        ConfigError: what the description asks for cannot be together; see ``model_problems``.
    """

    def __init__(self, config: ModelConfig, *, checkpoint_activations: bool = False) -> None:
        if problems := list(model_problems(config)):
            raise ConfigError("; ".join(problems))
        super().__init__(
            config,
            n_layers=config.n_layers,
            causal=config.causal,
            crosses=False,
            checkpoint_activations=checkpoint_activations,
        )
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
        return self.run(tokens_BT, positions_BT, documents_BT, cache, segments_BT)

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Compute logits from what ``hidden`` returned, or from a part of it.

        Args:
            hidden_BTD: residual stream of any leading shape.

        Returns:
            Logits (B, T, V).
        """
        if self.config.output_transform:
            hidden_BTD = self.output_transform(hidden_BTD)
        logits_BTV: Tensor = self.output(scaled(hidden_BTD, self.config.output_scale))
        return logits_BTV

    def pooled(self, hidden_BTD: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """Compute what stands for each whole sequence: see ``pool``, and what the ``pooler`` makes of it.

        Args:
            hidden_BTD: what ``hidden`` returned.
            mask_BT: true at real tokens; None where all are.

        Returns:
            (B, D).
        """
        pooled_BD = pool(hidden_BTD, mask_BT, self.config.pooling)
        return torch.tanh(self.pooler(pooled_BD)) if self.config.pooler else pooled_BD

    def class_logits(self, hidden_BTD: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """Compute the logits of each sequence's classes, of a model with ``n_classes``.

        Args:
            hidden_BTD: what ``hidden`` returned.
            mask_BT: true at real tokens; None where all are.

        Returns:
            (B, C).
        """
        logits_BC: Tensor = self.classifier(self.dropout(self.pooled(hidden_BTD, mask_BT)))
        return logits_BC

    def new_cache(self, max_len: int) -> KVCache:
        """An empty cache for texts of so many tokens."""
        return KVCache(self.config.n_layers, max_len)
