"""The Transformer that reads a source with one stack and writes with another: the original one, and T5.

Names of its weights: ``encoder.*`` and ``decoder.*`` as in ``stack.py``, and ``output``. Source and text share one
embedding, as they share one tokenizer.

Shapes: B batch, S tokens of the source, T time, D d_model, V vocabulary.
"""

from torch import Tensor, nn

from scaletrain.config.model_rules import model_problems
from scaletrain.config.schema import ModelConfig
from scaletrain.errors import ConfigError
from scaletrain.model.attention import KVCache
from scaletrain.model.layers import Linear, scaled
from scaletrain.model.stack import Stack


class EncoderDecoder(nn.Module):
    """An encoder, which sees the whole source, and a decoder, which sees that and its own tokens before.

    Args:
        config: the model's description, with ``n_encoder_layers``.
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
        self.encoder = Stack(
            config,
            n_layers=config.n_encoder_layers,
            causal=False,
            crosses=False,
            checkpoint_activations=checkpoint_activations,
        )
        self.decoder = Stack(
            config,
            n_layers=config.n_layers,
            causal=True,
            crosses=True,
            checkpoint_activations=checkpoint_activations,
        )
        # The very same Parameter: ZeRO-3 then gathers it for each of these modules as one of its own.
        self.decoder.embedding.weight = self.encoder.embedding.weight
        self.output = Linear(config.d_model, config.vocab_size, bias=config.output_bias, init_std=config.init_std)
        if config.tie_embeddings:
            self.output.weight = self.encoder.embedding.weight

    def forward(self, source_BS: Tensor, tokens_BT: Tensor, source_mask_BS: Tensor | None = None) -> Tensor:
        """Compute the logits of the token after each token of a text that is known (teacher forcing).

        Args:
            source_BS: int64 tokens of the sources.
            tokens_BT: int64 tokens of the texts, each from what the decoder reads first.
            source_mask_BS: true at real tokens of the source, with padding behind them; None where all are.

        Returns:
            Logits (B, T, V) in the type of the computation. Padding behind a text changes nothing before it.

        Raises:
            ConfigError: more tokens than learned positions.
        """
        memory_BSD = self.encode(source_BS, source_mask_BS)
        return self.logits(self.decode(tokens_BT, memory_BSD, source_mask_BS))

    def encode(self, source_BS: Tensor, source_mask_BS: Tensor | None = None) -> Tensor:
        """Read the sources.

        Args:
            source_BS: as in ``forward``.
            source_mask_BS: see ``forward``.

        Returns:
            (B, S, D): one state for each token of the source; those of padding mean nothing.

        Raises:
            ConfigError: see ``forward``.
        """
        # Padding is a document of its own, which no token of the source sees.
        documents_BS = None if source_mask_BS is None else (~source_mask_BS).int()
        return self.encoder.run(source_BS, documents_BT=documents_BS)

    def decode(
        self,
        tokens_BT: Tensor,
        memory_BSD: Tensor,
        source_mask_BS: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Compute the decoder's residual stream behind its last layer, normalised.

        Args:
            tokens_BT: int64 tokens: those behind what is in the cache.
            memory_BSD: what ``encode`` returned.
            source_mask_BS: see ``forward``.
            cache: keys and values of the tokens before these and of the source; the new ones are appended.

        Returns:
            (B, T, D) in the type of the computation.

        Raises:
            ConfigError: see ``forward``.
            ValueError: the cache is full.
        """
        return self.decoder.run(tokens_BT, cache=cache, memory_BSD=memory_BSD, memory_mask_BS=source_mask_BS)

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Compute logits from what ``decode`` returned, or from a part of it.

        Args:
            hidden_BTD: residual stream of any leading shape.

        Returns:
            Logits (B, T, V).
        """
        logits_BTV: Tensor = self.output(scaled(hidden_BTD, self.config.output_scale))
        return logits_BTV

    def new_cache(self, max_len: int) -> KVCache:
        """An empty cache for texts of so many tokens."""
        return KVCache(self.config.n_layers, max_len)
