"""What a Transformer is compared with: recurrent and convolutional models, of torch's own modules.

They stand behind the interface of ``Transformer`` and ``EncoderDecoder``, so that tasks, generation and search take
them as they are. Positions and segments are part of that interface only: such models read in order.

Shapes: B batch, T time, S tokens of the source, D d_model, L layers, V vocabulary, C classes, F all feature maps.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import rnn

from scaletrain.config.model_rules import model_problems
from scaletrain.config.schema import ModelConfig
from scaletrain.errors import ConfigError
from scaletrain.model.attention import visible_memory
from scaletrain.model.document_attention import find_spans
from scaletrain.model.layers import Embedding, Linear
from scaletrain.model.pooling import pool


class RecurrentCache:
    """The state of an LSTM behind the tokens so far."""

    def __init__(self) -> None:
        self.length = 0
        self.state: tuple[Tensor, Tensor] | None = None

    def advance(self, n_tokens: int, state: tuple[Tensor, Tensor]) -> None:
        """Take the state behind so many more tokens."""
        self.length, self.state = self.length + n_tokens, state

    def clear(self) -> None:
        """Forget all tokens."""
        self.length, self.state = 0, None

    def reorder(self, rows_B: Tensor, within_sources: bool = False) -> None:
        """Let row i go on from what was row ``rows_B[i]``; nothing is kept of the source, whichever row that is of."""
        if self.state is not None:
            h_LBD, c_LBD = self.state
            self.state = h_LBD[:, rows_B], c_LBD[:, rows_B]


class LSTM(nn.Module):
    """A language model, or with ``n_classes`` a classifier; reading in both directions where it is not causal.

    Source: Hochreiter and Schmidhuber 1997, "Long Short-Term Memory"; dropout between the layers only, as Zaremba et
    al. 2014, "Recurrent Neural Network Regularization", have it.

    Args:
        config: the model's description.

    Raises:
        ConfigError: what the description asks for cannot be together; see ``model_problems``.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        _check(config)
        self.config = config
        self.embedding = Embedding(config.vocab_size, config.d_model, init_std=config.init_std)
        self.dropout = nn.Dropout(config.dropout)
        self.lstm = _lstm(config, config.n_layers, both_directions=not config.causal)
        self.output = _output(config, self.embedding)
        if config.n_classes:
            self.classifier = Linear(config.d_model, config.n_classes, bias=True, init_std=config.init_std)

    def forward(
        self,
        tokens_BT: Tensor,
        positions_BT: Tensor | None = None,
        documents_BT: Tensor | None = None,
        cache: RecurrentCache | None = None,
        segments_BT: Tensor | None = None,
    ) -> Tensor:
        """Compute the logits of the token after each token: see ``hidden``, and ``Transformer.forward``."""
        return self.logits(self.hidden(tokens_BT, positions_BT, documents_BT, cache, segments_BT))

    def hidden(
        self,
        tokens_BT: Tensor,
        positions_BT: Tensor | None = None,
        documents_BT: Tensor | None = None,
        cache: RecurrentCache | None = None,
        segments_BT: Tensor | None = None,
    ) -> Tensor:
        """Compute the hidden states of the last layer.

        Args:
            tokens_BT: int64 tokens.
            positions_BT: not used.
            documents_BT: integer number of each token's document, which never decreases along a row. Given, each
                document begins with a state of zeros.
            cache: the state behind the tokens before these; it is advanced.
            segments_BT: not used.

        Returns:
            (B, T, D) in the type of the computation.

        Raises:
            ValueError: both documents and a cache are given, the documents' numbers decrease along a row, or a model
                that reads in both directions is given a cache.
        """
        if cache is not None and (documents_BT is not None or not self.config.causal):
            raise ValueError("a cache continues one document per row of a causal model; leave the cache out")
        x_BTD = self.dropout(self.embedding(tokens_BT))
        if cache is None:
            hidden_BTD = _run_each(self.lstm, x_BTD, documents_BT)
        else:
            hidden_BTD, state = self.lstm(x_BTD, cache.state)
            cache.advance(tokens_BT.shape[1], state)
        dropped_BTD: Tensor = self.dropout(hidden_BTD)
        return dropped_BTD

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Compute logits (B, T, V) from what ``hidden`` returned, or from a part of it."""
        logits_BTV: Tensor = self.output(hidden_BTD)
        return logits_BTV

    def class_logits(self, hidden_BTD: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """Compute the logits (B, C) of each sequence's classes: see ``Transformer.class_logits``."""
        logits_BC: Tensor = self.classifier(pool(hidden_BTD, mask_BT, self.config.pooling))
        return logits_BC

    def new_cache(self, max_len: int) -> RecurrentCache:
        """An empty cache; a state takes as much for any number of tokens."""
        del max_len
        return RecurrentCache()


class LSTMSeq2Seq(nn.Module):
    """An LSTM that reads a source in both directions, and one that writes, with attention to what was read.

    The scores of attention are ``h^T W m`` of the decoder's state and each state of the source ("general"). What was
    attended to is not fed into the next step, so that a text that is known is read in one call. The decoder's first
    state is made of the encoder's last ones, as by Bahdanau et al. 2015.

    Source: Luong et al. 2015, "Effective Approaches to Attention-based Neural Machine Translation", sections 3 and 3.1.

    Args:
        config: the model's description, with ``n_encoder_layers``.

    Raises:
        ConfigError: what the description asks for cannot be together; see ``model_problems``.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        _check(config)
        self.config = config
        width, init_std = config.d_model, config.init_std
        self.embedding = Embedding(config.vocab_size, width, init_std=init_std)
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = _lstm(config, config.n_encoder_layers, both_directions=True)
        self.bridge = Linear(width, config.n_layers * width, bias=True, init_std=init_std)
        self.decoder = _lstm(config, config.n_layers, both_directions=False)
        self.query = Linear(width, width, bias=False, init_std=init_std)
        self.combine = Linear(2 * width, width, bias=False, init_std=init_std)
        self.output = _output(config, self.embedding)

    def forward(self, source_BS: Tensor, tokens_BT: Tensor, source_mask_BS: Tensor | None = None) -> Tensor:
        """Compute the logits of the token after each token of a known text: see ``EncoderDecoder.forward``."""
        memory_BSD = self.encode(source_BS, source_mask_BS)
        return self.logits(self.decode(tokens_BT, memory_BSD, source_mask_BS))

    def encode(self, source_BS: Tensor, source_mask_BS: Tensor | None = None) -> Tensor:
        """Read the sources: see ``EncoderDecoder.encode``."""
        documents_BS = None if source_mask_BS is None else (~source_mask_BS).int()
        memory_BSD: Tensor = self.dropout(
            _run_each(self.encoder, self.dropout(self.embedding(source_BS)), documents_BS)
        )
        return memory_BSD

    def decode(
        self,
        tokens_BT: Tensor,
        memory_BSD: Tensor,
        source_mask_BS: Tensor | None = None,
        cache: RecurrentCache | None = None,
    ) -> Tensor:
        """Compute the states that tell the next tokens: see ``EncoderDecoder.decode``."""
        state = None if cache is None else cache.state
        if state is None:
            state = self._first_state(memory_BSD, source_mask_BS)
        h_BTD, state = self.decoder(self.dropout(self.embedding(tokens_BT)), state)
        if cache is not None:
            cache.advance(tokens_BT.shape[1], state)
        mask_B11S = visible_memory(source_mask_BS).mask
        context_BTD = functional.scaled_dot_product_attention(
            self.query(h_BTD),
            memory_BSD,
            memory_BSD,
            attn_mask=None if mask_B11S is None else mask_B11S.squeeze(1),
            scale=1.0,
        )
        hidden_BTD: Tensor = self.dropout(torch.tanh(self.combine(torch.cat((context_BTD, h_BTD), dim=-1))))
        return hidden_BTD

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Compute logits (B, T, V) from what ``decode`` returned, or from a part of it."""
        logits_BTV: Tensor = self.output(hidden_BTD)
        return logits_BTV

    def new_cache(self, max_len: int) -> RecurrentCache:
        """An empty cache; a state takes as much for any number of tokens."""
        del max_len
        return RecurrentCache()

    def _first_state(self, memory_BSD: Tensor, source_mask_BS: Tensor | None) -> tuple[Tensor, Tensor]:
        forwards, backwards = memory_BSD.chunk(2, dim=-1)
        ends = (pool(forwards, source_mask_BS, "last"), pool(backwards, source_mask_BS, "first"))
        h_BD = torch.tanh(self.bridge(torch.cat(ends, dim=-1)))
        h_LBD = torch.stack(h_BD.chunk(self.config.n_layers, dim=-1))
        return h_LBD, torch.zeros_like(h_LBD)


class CNN(nn.Module):
    """A classifier of filters over several tokens, and the greatest answer of each.

    Source: Kim 2014, "Convolutional Neural Networks for Sentence Classification".

    Args:
        config: the model's description; ``d_ff`` feature maps for each of ``kernel_widths``.

    Raises:
        ConfigError: what the description asks for cannot be together; see ``model_problems``.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        _check(config)
        self.config = config
        self.embedding = Embedding(config.vocab_size, config.d_model, init_std=config.init_std)
        self.dropout = nn.Dropout(config.dropout)
        self.filters = nn.ModuleList(nn.Conv1d(config.d_model, config.d_ff, width) for width in config.kernel_widths)
        if config.n_classes:
            n_features = len(config.kernel_widths) * config.d_ff
            self.classifier = Linear(n_features, config.n_classes, bias=True, init_std=config.init_std)

    def hidden(
        self,
        tokens_BT: Tensor,
        positions_BT: Tensor | None = None,
        documents_BT: Tensor | None = None,
        cache: None = None,
        segments_BT: Tensor | None = None,
    ) -> Tensor:
        """Compute what the filters that begin at each token say.

        Args:
            tokens_BT: int64 tokens.
            positions_BT: not used.
            documents_BT: integer number of each token's document. A row is one document: what has another number than
                its first token is padding, of which the filters see zeros.
            cache: not used.
            segments_BT: not used.

        Returns:
            (B, T, F) in the type of the computation; no number is below zero.
        """
        x_BTD = self.dropout(self.embedding(tokens_BT))
        if documents_BT is not None:
            x_BTD = x_BTD.where((documents_BT == documents_BT[:, :1]).unsqueeze(-1), 0.0)
        x_BDT = x_BTD.transpose(1, 2)
        # Behind the last token stand zeros, so that texts shorter than a filter have an answer too.
        answers = [
            filters(functional.pad(x_BDT, (0, width - 1)))
            for filters, width in zip(self.filters, self.config.kernel_widths, strict=True)
        ]
        return functional.relu(torch.cat(answers, dim=1)).transpose(1, 2)

    def class_logits(self, hidden_BTF: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """Compute the logits (B, C) of each sequence's classes: see ``Transformer.class_logits``."""
        if mask_BT is not None:
            hidden_BTF = hidden_BTF.where(mask_BT.unsqueeze(-1), 0.0)
        logits_BC: Tensor = self.classifier(self.dropout(hidden_BTF.amax(1)))
        return logits_BC


def _check(config: ModelConfig) -> None:
    if problems := list(model_problems(config)):
        raise ConfigError("; ".join(problems))


def _lstm(config: ModelConfig, n_layers: int, *, both_directions: bool) -> nn.LSTM:
    return nn.LSTM(
        config.d_model,
        config.d_model // 2 if both_directions else config.d_model,
        n_layers,
        batch_first=True,
        bidirectional=both_directions,
        dropout=config.dropout if n_layers > 1 else 0.0,
    )


def _output(config: ModelConfig, embedding: Embedding) -> Linear:
    output = Linear(config.d_model, config.vocab_size, bias=config.output_bias, init_std=config.init_std)
    if config.tie_embeddings:
        # The very same Parameter: ZeRO-3 then gathers it for this module as one of its own.
        output.weight = embedding.weight
    return output


def _run_each(lstm: nn.LSTM, x_BTD: Tensor, documents_BT: Tensor | None) -> Tensor:
    """Hidden states of the last layer, where each document begins with a state of zeros."""
    if documents_BT is None:
        hidden_BTD: Tensor = lstm(x_BTD)[0]
        return hidden_BTD
    # Spans cover all places in their order, so what is cut into them and joined again is in order too.
    documents = [x_BTD[span.row, span.start : span.stop] for span in find_spans(documents_BT)]
    states = rnn.unpack_sequence(lstm(rnn.pack_sequence(documents, enforce_sorted=False))[0])
    return torch.cat(states).view(*documents_BT.shape, -1)
